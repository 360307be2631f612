"""The rows of one file: JSONL, an array of JSON, or Parquet."""

from collections.abc import Iterator
from pathlib import Path

from vold_trainer.data.columns import Columns
from vold_trainer.data.json_array import holds_array, read_json_array
from vold_trainer.data.jsonl import read_lines, read_object
from vold_trainer.data.parquet import count_parquet_rows, parquet_rows
from vold_trainer.data.parsing import Parser
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

JSONL = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)

StoredRow = Row | tuple[int, bytes]
"""A row; or a line of JSONL and its number, from 1, which another process may read."""


def file_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of one file; its suffix tells the format. Raises UsageError for an unknown suffix."""
    parser = Parser()
    for stored in stored_rows(path, columns):
        yield read_row(stored, path, parser)


def stored_rows(path: Path, columns: Columns) -> Iterator[StoredRow]:
    """As `file_rows`, with lines of JSONL as they are."""
    if path.suffix in PARQUET:
        yield from parquet_rows(path, columns)
    elif path.suffix == ".json" and holds_array(path):
        for index, row in read_json_array(path):
            yield Row(f"{path}[{index}]", row, path.parent)
    elif path.suffix in JSONL:
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield number, line
    else:
        raise UsageError(f"{str(path)!r} is neither JSONL ({', '.join(JSONL)}) nor Parquet (.parquet): convert it")


def read_row(stored: StoredRow, path: Path, parser: Parser) -> Row:
    """The row of a file as `stored_rows` has it. parser: of many rows, one after the other."""
    if isinstance(stored, Row):
        return stored
    number, line = stored
    where = f"{path}:{number}"
    return Row(where, read_object(line, where, parser), path.parent)


def count_rows(path: Path, lines: int) -> int:
    """The number of rows of a file with so many lines, blank ones among them. An array of JSON is read for it."""
    if path.suffix in PARQUET:
        return count_parquet_rows(path)
    if path.suffix == ".json" and holds_array(path):
        return sum(1 for _ in read_json_array(path))
    return lines
