"""Rows of JSONL and Parquet files, for the sets that an adapter reads."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vold_trainer.adapters import adapt, adapter
from vold_trainer.config import DataConfig
from vold_trainer.data import Example, read_lines
from vold_trainer.errors import UsageError

log = logging.getLogger("vold.data")


def adapted_examples(config: DataConfig) -> list[Example]:
    """The examples of a set with an adapter. Raises UsageError that names file, row and column."""
    adapter(config.adapter)
    found: list[Example] = []
    last = None if config.limit is None else config.offset + config.limit
    skipped = 0
    for path in _files(config.source):
        for number, row in _rows(path):
            if last is not None and len(found) >= last:
                break
            where = f"{path}:{number}"
            try:
                if isinstance(row, UsageError):
                    raise row
                found.append(adapt(config.adapter, row, where, wording=config.wording, folder=path.parent))
            except UsageError as error:
                if not config.skip_broken:
                    raise UsageError(f"{error}. Mend the row, or set data.skip_broken=true") from error
                skipped += 1
                log.warning("left out %s", error)
    if skipped:
        log.warning("%s: %d broken rows left out", config.source, skipped)
    if len(found) <= config.offset:
        raise UsageError(f"data.source {config.source!r} has no rows from data.offset {config.offset} on")
    return found[config.offset :]


def _files(source: str) -> list[Path]:
    pattern = Path(source)
    paths = sorted(pattern.parent.glob(pattern.name)) if "*" in pattern.name else [pattern]
    if not paths or not all(path.is_file() for path in paths):
        raise UsageError(f"data.source {source!r} is no file that exists: give a JSONL or Parquet file, or a pattern")
    return paths


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | UsageError]]:
    """(row number from 1, columns or what is wrong with the row)."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
    elif path.suffix in (".jsonl", ".ndjson", ".json"):
        yield from read_lines(path)
    else:
        raise UsageError(f"data.source {str(path)!r} is neither JSONL nor Parquet: convert it")


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(f"data.source {str(path)!r} needs pyarrow: pip install pyarrow") from error
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} is no Parquet file that can be read: {error}") from error
