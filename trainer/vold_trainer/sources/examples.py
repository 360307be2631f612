"""Loading the examples of a config: the source of its rows, and the treatment of broken rows."""

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
from vold_trainer.data.saved import is_saved, saved_rows
from vold_trainer.data.template import PromptTemplate
from vold_trainer.errors import UsageError
from vold_trainer.hub import require_hub_dataset
from vold_trainer.launch import is_local_main_process
from vold_trainer.paths import require_folder, why_no_path
from vold_trainer.pocket.problems import Split
from vold_trainer.pocket.world import make_examples

log = logging.getLogger("vold.data")

_SPLIT = re.compile(r"(train|validation|valid|val|dev|eval|test)(?![A-Za-z])")


def load_examples(config: DataConfig) -> list[Example]:
    """Load the examples of a config. Raises UsageError that names file, row and field."""
    return list(each_example(config))


def each_example(config: DataConfig) -> Iterator[Example]:
    """The examples of a config, one after another. Raises as `load_examples`."""
    if config.source == "pocket":
        yield from make_examples(
            cast(Split, config.split),
            config.limit or 4096,
            modality=config.modality,
            seed=config.seed,
            offset=config.offset,
        )
        return
    columns, reader = _make_reader(config)
    rows = _RecordedRows(_read_rows(config, columns))
    valid = _valid_examples(rows, reader, config)
    before = sum(1 for _ in islice(valid, config.offset))
    found = 0
    for example in islice(valid, config.limit):
        found += 1
        yield example
    if rows.exhausted and rows.columns:
        columns.check_seen(list(rows.columns), repr(config.source))
    if not found:
        if before:
            raise UsageError(
                f"data.source {config.source!r} has {before:,} rows, and data.offset skips {config.offset:,}: lower it"
            )
        if rows.count:
            raise UsageError(
                f"data.source {config.source!r}: all {rows.count:,} rows are broken, and data.skip_broken=true leaves "
                "them out: mend them; each has a warning"
            )
        raise UsageError(f"data.source {config.source!r} has no rows")


def check_source(config: DataConfig) -> None:
    """Raise UsageError if the source, its image folder, its adapter or a mapped field can be seen not to exist, without
    reading a row.
    """
    if config.source == "pocket":
        return
    _make_reader(config)
    if not _find_files(config.source, config.split):
        _require_folder_or_hub_name(config.source)
        if not Path(config.source).is_dir() and is_local_main_process():  # the processes of a machine share the cache
            require_hub_dataset(config.source, f"data.source {config.source!r}")
    if config.image_folder is not None:
        require_folder(config.image_folder, "data.image_folder", "give the folder that relative image paths start from")


def _make_reader(config: DataConfig) -> tuple[Columns, Reader | AdapterReader]:
    if config.adapter:
        by_adapter = adapter_reader(config)
        return by_adapter.columns, by_adapter
    template = PromptTemplate(config.template) if config.template else None
    reader = Reader(
        Columns(config.columns, named=template.columns if template else ()),
        template=template,
        system=config.system,
        image_token=config.image_token,
        image_folder=config.image_folder,
        decode_images=config.check_images == "pixels",
    )
    return reader.columns, reader


def _read_rows(config: DataConfig, columns: Columns) -> Iterator[Row]:
    files = _find_files(config.source, config.split)
    for file in files:
        yield from file_rows(file, columns)
    if files:
        return
    _require_folder_or_hub_name(config.source)
    if is_saved(Path(config.source)):
        yield from saved_rows(Path(config.source), config.split, columns)
    else:
        yield from dataset_rows(config, columns)


def _require_folder_or_hub_name(source: str) -> None:
    path = Path(source)
    may_be_hub_name = (
        not source.startswith((".", "/", "~"))
        and not source.endswith("/")
        and path.suffix not in (*JSONL, *PARQUET)
        and source.count("/") <= 1
    )
    if not path.is_dir() and (why := why_no_path(source)):
        raise UsageError(f"data.source {source!r}: {why}")
    if not path.is_dir() and (not may_be_hub_name or glob.has_magic(source)):
        raise UsageError(
            f"data.source {source!r} is neither 'pocket' nor a file or folder that exists, nor the name of a data set "
            "of the hub (OWNER/NAME)"
        )


def _find_files(source: str, split: str) -> list[Path]:
    """The files of a source: one file, the matches of a pattern, or the Parquet shards of a folder. If names of shards
    begin with a split (train-00000-of-00002.parquet), only the shards of `split`.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if glob.has_magic(source):
        return [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else []
    splits = {shard: match[0] for shard in shards if (match := _SPLIT.match(shard.name))}
    if splits and split not in splits.values():
        available = ", ".join(sorted(set(splits.values())))
        raise UsageError(f"data.split {split!r}: the Parquet files of {source!r} are of the splits {available}")
    return [shard for shard in shards if splits.get(shard) == split] if splits else shards


def _valid_examples(rows: Iterator[Row], reader: Reader | AdapterReader, config: DataConfig) -> Iterator[Example]:
    """The examples of the rows. A broken row raises UsageError, or is skipped if the config says so."""
    skipped = 0
    for row in rows:
        try:
            yield reader.example(row)
        except UsageError as error:
            if not config.skip_broken:
                raise UsageError(f"{error}. Mend the row, or set data.skip_broken=true") from error
            skipped += 1
            log.warning("skipped %s", error)
    if skipped:
        log.warning("%s: skipped %d broken rows", config.source, skipped)


class _RecordedRows(Iterator[Row]):
    """Rows, with a record of the columns so far, of how many rows were read and of whether all were."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.rows = rows
        self.exhausted = False
        self.count = 0
        self.columns: dict[str, None] = {}

    def __next__(self) -> Row:
        try:
            row = next(self.rows)
        except StopIteration:
            self.exhausted = True
            raise
        self.count += 1
        if not isinstance(row.values, UsageError):
            self.columns.update(dict.fromkeys(row.values))
        return row
