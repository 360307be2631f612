"""Rows of Parquet files, through pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_trainer.data.arrow import import_pyarrow, require_distinct, row_values, unreadable
from vold_trainer.data.columns import Columns
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

BATCH = 64
"""Rows read together: some megabytes if they hold images."""


def parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file, with the columns to read. The encoded images stay in memory. Pages with checksums are held
    against them.

    Raises UsageError if the file is not Parquet, or lacks a mapped column.
    """
    with _open(path) as file:
        available = file.schema_arrow.names
        require_distinct(available, str(path))
        names = columns.columns_to_read(available, str(path))
        index = 0
        batches = file.iter_batches(batch_size=BATCH, columns=names or None)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except _broken() as error:
                raise unreadable(error, str(path), index) from error
            for place in range(len(batch)):
                where = f"{path}[{index}]"
                yield Row(where, row_values(batch, place, where), path.parent)
                index += 1


def count_parquet_rows(path: Path) -> int:
    """The number of rows of a file, of its metadata. Raises UsageError if the file is not Parquet."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _open(path: Path) -> Any:
    arrow = import_pyarrow("reading Parquet")
    try:
        file = arrow.parquet.ParquetFile(path, page_checksum_verification=True)
        _ = file.schema_arrow.names  # which may be no text
    except _broken() as error:
        raise UsageError(f"{path} cannot be read as Parquet: {str(error).strip()}") from error
    return file


def _broken() -> tuple[type[Exception], ...]:
    """The errors of a corrupted file: an impossible length, a name that is not UTF-8, a type that nobody knows."""
    return OSError, import_pyarrow("reading Parquet").ArrowException, ValueError, OverflowError
