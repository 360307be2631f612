"""The mapping from fields of an example to columns of a row.

A mapped field is read from its column, any other field from a column of its own name. Dots name nested columns:
`extra.answer`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vold_trainer.data.quoting import list_names
from vold_trainer.errors import UsageError

FIELD_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "prompt": ("prompt",),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "system": ("system",),
    "images": ("images", "image"),
    "twin": ("twin",),
    "twin_messages": ("twin_messages",),
    "reference": ("reference", "answer"),
    "category": ("category",),
    "tags": ("tags",),
    "teacher": ("teacher",),
    "verifier": ("verifier",),
    "parameters": ("parameters",),
    "options": (),
}
"""The fields, and the columns from which an unmapped field is read: the first that the row has. `options` is read where
it is mapped: many data sets have such a column, whose texts are in the prompt too, and verifiers that take none.
"""

ALTERNATIVES = (
    ("prompt", "messages"),
    ("prompt", "conversations"),
    ("messages", "conversations"),
    ("twin", "twin_messages"),
)
"""Pairs of fields with the same purpose. If one is mapped, a column with the other's name is not read."""

ColumnMapping = Mapping[str, str | Sequence[str] | None]


class Columns:
    """The column mapping of a run. mapping: None for a field that is not read. key: of the config, for errors."""

    def __init__(
        self,
        mapping: ColumnMapping | None = None,
        field_columns: Mapping[str, tuple[str, ...]] = FIELD_COLUMNS,
        *,
        key: str = "data.columns",
        named: Sequence[str] = (),
    ) -> None:
        """named: further columns to read, which a template names."""
        mapping = mapping or {}
        self.key = key
        self.named = named
        for field, path in mapping.items():
            if field not in field_columns:
                near = difflib.get_close_matches(field, field_columns, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(field_columns)}"
                raise UsageError(f"{key}.{field}: a row has no field {field!r} here; {hint}")
            if not isinstance(path, str | None) and field != "images":
                raise UsageError(f"{key}.{field} is {list(path)}: only images may come from several columns")
        self.mapping = mapping
        self.paths: dict[str, tuple[str, ...]] = {}
        unread = {
            other
            for pair in ALTERNATIVES
            for field, other in (pair, pair[::-1])
            if mapping.get(field) is not None and other not in mapping
        }
        for field, defaults in field_columns.items():
            chosen = mapping.get(field, () if field in unread else defaults)
            self.paths[field] = (chosen,) if isinstance(chosen, str) else tuple(chosen or ())
        self.seen: set[str] = set()

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the row that are not null. If `images` has several columns, the values of all are joined."""
        fields: dict[str, Any] = {}
        for field, paths in self.paths.items():
            values = []
            for path in paths:
                exists, value = _look_up(row, path)
                if exists:
                    self.seen.add(path)
                if not is_null(value):
                    values.append(value)
            if not values:
                continue
            several = field == "images" and field in self.mapping and len(paths) > 1
            fields[field] = _join(values) if several else values[0]
        return fields

    def describe(self, field: str) -> str:
        """The field for an error message, with its column if that has another name."""
        if field in self.mapping and self.paths[field]:
            return f"field {field!r} (column {', '.join(map(repr, self.paths[field]))})"
        return f"field {field!r}"

    def hint(self, field: str, available: Sequence[str]) -> str:
        """The remedy for a field that may be missing because its column has another name."""
        return f", or name its column with {self.key}.{field} (the row has {list_names(available)})"

    def columns_to_read(self, available: Sequence[str], where: str) -> list[str]:
        """The columns to read, of those available. Raises UsageError if a mapped column is missing."""
        self._check(available, available, f"{where} has no such column")
        mapped = {path if path in available else path.split(".")[0] for paths in self.paths.values() for path in paths}
        return [name for name in available if name in mapped or name in self.named]

    def check_seen(self, available: Sequence[str], where: str) -> None:
        """Raise UsageError for a mapped column that no row had."""
        self._check(self.seen, available, f"no row of {where} has such a column")

    def _check(self, known: Sequence[str] | set[str], available: Sequence[str], problem: str) -> None:
        for field in self.mapping:
            for path in self.paths.get(field, ()):
                if path not in known and path.split(".")[0] not in known:
                    near = difflib.get_close_matches(path, available, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"columns there: {list_names(available)}"
                    raise UsageError(f"{self.key}.{field} is {path!r}: {problem}; {hint}")


def is_null(value: Any) -> bool:
    """Whether a value is null, or the NaN that pandas writes for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def drop_nulls(value: Any) -> Any:
    """The value without the null entries of its mappings. Parquet gives every row all keys that any row has."""
    if isinstance(value, Mapping):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def _join(values: Sequence[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _look_up(row: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """(whether the row has such a column, its value)."""
    if path in row:
        return True, row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value
