"""Rows of Parquet files, through pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_proto.distribution import require_extra

from vold_trainer.data.columns import Columns
from vold_trainer.data.numbers import shortened
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

BATCH = 64
"""Rows read together: some megabytes if they hold images."""


def parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file, with the columns to read. The encoded images stay in memory.

    Raises UsageError if the file is not Parquet, or lacks a mapped column.
    """
    arrow = _pyarrow()
    with _open(path) as file:
        names = columns.columns_to_read(file.schema_arrow.names, str(path))
        index = 0
        batches = file.iter_batches(batch_size=BATCH, columns=names or None)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, arrow.ArrowInvalid) as error:
                raise UsageError(f"{path} cannot be read from row {index} on: {error}") from error
            for place in range(len(batch)):
                where = f"{path}[{index}]"
                yield Row(where, _values(batch, place, where), path.parent)
                index += 1


def count_parquet_rows(path: Path) -> int:
    """The number of rows of a file, of its metadata. Raises UsageError if the file is not Parquet."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _open(path: Path) -> Any:
    arrow = _pyarrow()
    try:
        return arrow.parquet.ParquetFile(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error


def _values(batch: Any, place: int, where: str) -> dict[str, Any] | UsageError:
    """The values of one row of a batch of Arrow, or the error of the row."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = _plain(column[place].as_py(), column.type)
        except (ValueError, OverflowError, RecursionError) as error:  # text that is not UTF-8, a date past year 9999
            return UsageError(f"{where}: column {name!r} cannot be read ({str(error)[:80]}): mend it")
    return row


def _plain(value: Any, kind: Any) -> Any:
    """The value, with numbers of 16 and 32 bits shortened wherever they are in it."""
    if isinstance(value, float):
        return shortened(value, str(kind))
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_plain(item, kind.value_type) for item in value]
    if isinstance(value, dict):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    return value


def _pyarrow() -> Any:
    with require_extra("data", "reading Parquet", UsageError):
        import pyarrow
        import pyarrow.parquet
    return pyarrow
