"""Rows of Arrow's batches as rows of JSON would be: what Parquet files and data sets on disk have in common."""

from collections.abc import Sequence
from typing import Any

from vold_proto.distribution import require_extra

from vold_trainer.data.numbers import shortened
from vold_trainer.errors import UsageError


def row_values(batch: Any, place: int, where: str) -> dict[str, Any] | UsageError:
    """The values of one row of a batch, or the error of the row. where: names the row."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = _plain(column[place].as_py(), column.type)
        except MemoryError:
            raise
        except Exception as error:  # text that is not UTF-8, a date past year 9999, a time zone that nobody knows, ...
            return UsageError(f"{where}: column {name!r} cannot be read ({_first_line(error)}): mend it")
    return row


def require_distinct(names: Sequence[str], where: str) -> None:
    """Raise UsageError if two columns have one name: one of the two would be lost."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where} has the column {name!r} twice: rename one")


def unreadable(error: Exception, where: str, row: int) -> UsageError:
    """The error for a file that breaks off, or is corrupted, at the batch of this row."""
    return UsageError(f"{where} cannot be read from row {row} on: {_first_line(error)}")


def import_pyarrow(purpose: str) -> Any:
    """pyarrow, with its Parquet and IPC. Raises UsageError that names the extra. purpose: what needs it."""
    with require_extra("data", purpose, UsageError):
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    return pyarrow


def _plain(value: Any, kind: Any) -> Any:
    """The value, with numbers of 16 and 32 bits shortened wherever they are in it."""
    if isinstance(value, float):
        return shortened(value, str(kind))
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_plain(item, kind.value_type) for item in value]
    if isinstance(value, dict):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
