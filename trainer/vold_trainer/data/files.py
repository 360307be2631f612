"""The rows of one file: JSONL, an array of JSON, or Parquet."""

from collections.abc import Iterator
from pathlib import Path

from vold_trainer.data.columns import Columns
from vold_trainer.data.json_array import holds_array, read_json_array
from vold_trainer.data.jsonl import read_jsonl
from vold_trainer.data.parquet import parquet_rows
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

JSONL = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)


def file_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of one file; its suffix tells the format. Raises UsageError for an unknown suffix."""
    if path.suffix in PARQUET:
        yield from parquet_rows(path, columns)
    elif path.suffix == ".json" and holds_array(path):
        for index, row in read_json_array(path):
            yield Row(f"{path}[{index}]", row, path.parent)
    elif path.suffix in JSONL:
        for number, row in read_jsonl(path):
            yield Row(f"{path}:{number}", row, path.parent)
    else:
        raise UsageError(f"{str(path)!r} is neither JSONL ({', '.join(JSONL)}) nor Parquet (.parquet): convert it")
