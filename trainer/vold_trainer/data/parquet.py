"""Rows of Parquet files, through pyarrow."""

from collections.abc import Iterator
from pathlib import Path

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
    arrow = import_pyarrow("reading Parquet")
    # A corrupted file may be anything: an impossible length, a name that is not UTF-8, a type that nobody knows.
    broken = (OSError, arrow.ArrowException, ValueError, OverflowError)
    try:
        file = arrow.parquet.ParquetFile(path, page_checksum_verification=True)
        available = file.schema_arrow.names
    except broken as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        require_distinct(available, str(path))
        names = columns.columns_to_read(available, str(path))
        index = 0
        batches = file.iter_batches(batch_size=BATCH, columns=names or None)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except broken as error:
                raise unreadable(error, str(path), index) from error
            for place in range(len(batch)):
                where = f"{path}[{index}]"
                yield Row(where, row_values(batch, place, where), path.parent)
                index += 1
