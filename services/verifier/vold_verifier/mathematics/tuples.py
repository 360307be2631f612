"""Compare tuples: (1, 2), (x, y) = (1, 2), and x = 1, y = 2."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from vold_verifier.mathematics import notation

_NAME = r"[A-Za-z](?:_\{?\w\}?)?"
_NAMED_TUPLE = re.compile(rf"^\(\s*(?P<names>{_NAME}(?:\s*,\s*{_NAME})+)\s*\)\s*=\s*(?P<values>\(.*\))$", re.DOTALL)
_ASSIGNED = re.compile(rf"^(?P<name>{_NAME})\s*=(?!=)\s*(?P<value>[^=<>]+)$", re.DOTALL)
_POINT = re.compile(r"^(?P<name>[A-Z](?:_\{?\w\}?|'+)?)\s*=?\s*(?=\([^()]*,.*\)$)", re.DOTALL)
_FINITE_SET = re.compile(r"^\\\{.*\\\}$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Tuple:
    """names: the variables in the order of the values, or (). from_assignments: written as in "x = 1, y = 2"."""

    values: tuple[str, ...]
    names: tuple[str, ...] = ()
    from_assignments: bool = False


def are_equal(reference: str, answer: str, equal: Callable[[str, str], bool]) -> bool | None:
    """Whether two texts are the same tuple; None if either is not a tuple. equal: compares two values.

    If both tuples have names, values with the same name are compared. Otherwise values are compared in order. An answer
    such as "y = 2, x = 1" is then in the alphabetical order of its names. Beside names "1, 2" is in order.
    """
    reference_tuple, answer_tuple = _parse(reference), _parse(answer)
    if (point := _point_name(reference)) and (other := _point_name(answer)) and point != other:
        return False
    if reference_tuple is not None and _FINITE_SET.match(answer):
        return False
    if reference_tuple is not None and reference_tuple.from_assignments and answer_tuple is None:
        answer_tuple = _parse_list(answer)
    if reference_tuple is None or answer_tuple is None:
        return None
    if len(reference_tuple.values) != len(answer_tuple.values):
        return False
    if reference_tuple.names and answer_tuple.names:
        if sorted(reference_tuple.names) != sorted(answer_tuple.names):
            return False
        answer_tuple = _reorder(answer_tuple, reference_tuple.names)
    elif answer_tuple.from_assignments:
        answer_tuple = _reorder(answer_tuple, tuple(sorted(answer_tuple.names)))
    return all(equal(first, second) for first, second in zip(reference_tuple.values, answer_tuple.values, strict=True))


def is_assignment(text: str) -> bool:
    """Whether `text` gives several names one value each, as in "x = 1, y = 2"."""
    parsed = _parse(text)
    return parsed is not None and parsed.from_assignments


def _reorder(parsed: _Tuple, names: tuple[str, ...]) -> _Tuple:
    return _Tuple(tuple(parsed.values[parsed.names.index(name)] for name in names), names)


def _parse_list(text: str) -> _Tuple | None:
    values = tuple(notation.split(text))
    return _Tuple(values) if len(values) > 1 and all(values) else None


def _point_name(text: str) -> str:
    match = _POINT.match(text.strip())
    return match["name"] if match is not None else ""


def _parse(text: str) -> _Tuple | None:
    text = _POINT.sub("", text.strip())
    names: tuple[str, ...] = ()
    if match := _NAMED_TUPLE.match(text):
        names = tuple(notation.split(match["names"]))
        text = match["values"]
    if text.startswith("(") and text.endswith(")") and len(notation.split(text)) == 1:
        values = tuple(notation.split(text[1:-1]))
        if len(values) > 1 and notation.is_enclosed(text) and all(values) and (not names or len(names) == len(values)):
            return _Tuple(values, names)
        return None
    parts = [_ASSIGNED.match(part) for part in notation.split(text)]
    if len(parts) > 1 and all(parts):
        assignments = [(part["name"], part["value"].strip()) for part in parts if part is not None]
        if len({name for name, _ in assignments}) == len(assignments):
            return _Tuple(
                tuple(value for _, value in assignments), tuple(name for name, _ in assignments), from_assignments=True
            )
    return None
