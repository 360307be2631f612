"""Rows of Parquet files, through pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_proto.distribution import require_extra

from vold_trainer.data.columns import Columns
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

BATCH = 64
"""Rows read together: some megabytes if they hold images."""


def parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file, with the columns to read. The encoded images stay in memory.

    Raises UsageError if the file is not Parquet, or lacks a mapped column.
    """
    arrow = _pyarrow()
    try:
        file = arrow.parquet.ParquetFile(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        names = columns.columns_to_read(file.schema_arrow.names, str(path))
        index = 0
        batches = file.iter_batches(batch_size=BATCH, columns=names or None)
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (OSError, arrow.ArrowInvalid) as error:
                raise UsageError(f"{path} cannot be read from row {index} on: {error}") from error
            for values in rows:
                yield Row(f"{path}[{index}]", values, path.parent)
                index += 1


def _pyarrow() -> Any:
    with require_extra("data", "reading Parquet", UsageError):
        import pyarrow
        import pyarrow.parquet
    return pyarrow
