"""The examples that a config asks for: where its rows come from, and what becomes of broken ones."""

import glob
import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

from vold_trainer.adapters import AdapterReader, adapter_reader
from vold_trainer.config import DataConfig
from vold_trainer.data.columns import Columns
from vold_trainer.data.examples import Example
from vold_trainer.data.files import JSONL, PARQUET, file_rows
from vold_trainer.data.hub import dataset_rows
from vold_trainer.data.rows import Reader, Row
from vold_trainer.errors import UsageError
from vold_trainer.pocket.problems import Split
from vold_trainer.pocket.world import examples

log = logging.getLogger("vold.data")

_SPLIT = re.compile(r"(train|validation|valid|val|dev|eval|test)(?![A-Za-z])")


def load_examples(config: DataConfig) -> list[Example]:
    """The examples that a config asks for. Raises UsageError that names file, row and field."""
    if config.source == "pocket":
        return examples(
            cast(Split, config.split),
            config.limit or 4096,
            modality=config.modality,
            seed=config.seed,
            offset=config.offset,
        )
    columns, reader = _reader(config)
    rows = _Counted(_rows(config, columns))
    end = None if config.limit is None else config.offset + config.limit
    found = list(islice(_whole(rows, reader, config), config.offset, end))
    if rows.ended and rows.names:
        columns.check_seen(list(rows.names), repr(config.source))
    if not found:
        raise UsageError(f"data.source {config.source!r} has no rows from data.offset {config.offset} on")
    return found


def _reader(config: DataConfig) -> tuple[Columns, Reader | AdapterReader]:
    if config.adapter:
        adapted = adapter_reader(config)
        return adapted.columns, adapted
    reader = Reader(
        Columns(config.columns),
        system=config.system,
        image_token=config.image_token,
        image_folder=config.image_folder,
        whole_images=config.check_images == "pixels",
    )
    return reader.columns, reader


def _rows(config: DataConfig, columns: Columns) -> Iterator[Row]:
    source, path = config.source, Path(config.source)
    files = _files(source, config.split)
    for file in files:
        yield from file_rows(file, columns)
    if files:
        return
    named = not source.startswith((".", "/", "~")) and path.suffix not in (*JSONL, *PARQUET) and source.count("/") <= 1
    if not path.is_dir() and (not named or glob.has_magic(source)):
        raise UsageError(
            f"data.source {source!r} is neither 'pocket' nor a file or folder that exists, nor the name of a data set "
            "of the hub (OWNER/NAME)"
        )
    yield from dataset_rows(config, columns)


def _files(source: str, split: str) -> list[Path]:
    """The files that a source names: itself, those that a pattern matches, or the Parquet shards of a folder, of the
    split alone where their names begin with one (train-00000-of-00002.parquet).
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if glob.has_magic(source):
        return [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else []
    splits = {shard: match[0] for shard in shards if (match := _SPLIT.match(shard.name))}
    if splits and split not in splits.values():
        there = ", ".join(sorted(set(splits.values())))
        raise UsageError(f"data.split {split!r}: the Parquet files of {source!r} are of the splits {there}")
    return [shard for shard in shards if splits.get(shard) == split] if splits else shards


def _whole(rows: Iterator[Row], reader: Reader | AdapterReader, config: DataConfig) -> Iterator[Example]:
    skipped = 0
    for row in rows:
        try:
            yield reader.example(row)
        except UsageError as error:
            if not config.skip_broken:
                raise UsageError(f"{error}. Mend the row, or set data.skip_broken=true") from error
            skipped += 1
            log.warning("left out %s", error)
    if skipped:
        log.warning("%s: %d broken rows left out", config.source, skipped)


class _Counted(Iterator[Row]):
    """Rows, and once they are over which columns they had."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.rows = rows
        self.ended = False
        self.names: dict[str, None] = {}

    def __next__(self) -> Row:
        try:
            row = next(self.rows)
        except StopIteration:
            self.ended = True
            raise
        if not isinstance(row.values, UsageError):
            self.names.update(dict.fromkeys(row.values))
        return row
