"""Which column of a row holds which field of ours.

A mapped field is read from its column, another one from the column of its own name. A column within a column is named
with dots: `extra.answer`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vold_trainer.errors import UsageError

NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "prompt": ("prompt",),
    "messages": ("messages",),
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
}
"""The fields, and the columns that each is read from where nothing is mapped, the first that is there."""

ALTERNATIVES = (("prompt", "messages"), ("twin", "twin_messages"))
"""Two ways to give the same: a mapping of one says that the other's column is somebody else's."""

Mapped = Mapping[str, str | Sequence[str] | None]


class Columns:
    """The mapping of a run, applied row by row. mapping: None for a field that is not to be read at all."""

    def __init__(self, mapping: Mapped | None = None, names: Mapping[str, tuple[str, ...]] = NAMES) -> None:
        mapping = mapping or {}
        for field, path in mapping.items():
            if field not in names:
                near = difflib.get_close_matches(field, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(names)}"
                raise UsageError(f"data.columns.{field}: a row has no field {field!r} here; {hint}")
            if not isinstance(path, str | None) and field != "images":
                raise UsageError(f"data.columns.{field} is {list(path)}: only images may come from several columns")
        self.mapping = mapping
        self.paths: dict[str, tuple[str, ...]] = {}
        dropped = {
            other
            for pair in ALTERNATIVES
            for field, other in (pair, pair[::-1])
            if mapping.get(field) is not None and other not in mapping
        }
        for field, own in names.items():
            chosen = mapping.get(field, () if field in dropped else own)
            self.paths[field] = (chosen,) if isinstance(chosen, str) else tuple(chosen or ())
        self.seen: set[str] = set()

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the row has; what is null is not there. Of several columns for `images` all are taken."""
        found: dict[str, Any] = {}
        for field, paths in self.paths.items():
            values = []
            for path in paths:
                there, value = _look_up(row, path)
                if there:
                    self.seen.add(path)
                if not absent(value):
                    values.append(value)
            if not values:
                continue
            several = field == "images" and field in self.mapping and len(paths) > 1
            found[field] = _joined(values) if several else values[0]
        return found

    def describe(self, field: str) -> str:
        """The field as an error names it, with its column where that is called otherwise."""
        if field in self.mapping and self.paths[field]:
            return f"field {field!r} (column {', '.join(map(repr, self.paths[field]))})"
        return f"field {field!r}"

    def needed(self, there: Sequence[str], where: str) -> list[str]:
        """The columns to read of those that are there. Raises UsageError where a mapped one is not."""
        self._check(there, there, f"{where} has no such column")
        wanted = {path if path in there else path.split(".")[0] for paths in self.paths.values() for path in paths}
        return [name for name in there if name in wanted]

    def check_seen(self, there: Sequence[str], where: str) -> None:
        """Raise UsageError for a mapped column that no row had."""
        self._check(self.seen, there, f"no row of {where} has such a column")

    def _check(self, known: Sequence[str] | set[str], there: Sequence[str], found: str) -> None:
        for field in self.mapping:
            for path in self.paths.get(field, ()):
                if path not in known and path.split(".")[0] not in known:
                    near = difflib.get_close_matches(path, there, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"columns there: {', '.join(there) or 'none'}"
                    raise UsageError(f"data.columns.{field} is {path!r}: {found}; {hint}")


def absent(value: Any) -> bool:
    """Whether a value stands for none: null, and the not-a-number that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_nulls(value: Any) -> Any:
    """The value without null entries of its mappings: a Parquet column gives every row all the keys that any has."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _joined(values: Sequence[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _look_up(row: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """(whether the row has such a column, what stands there)."""
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
