"""Ordered answers: (1, 2), (x, y) = (1, 2), and x = 1, y = 2."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from vold_verifier.mathematics import notation

_NAME = r"[A-Za-z](?:_\{?\w\}?)?"
_NAMED_TUPLE = re.compile(rf"^\(\s*(?P<names>{_NAME}(?:\s*,\s*{_NAME})+)\s*\)\s*=\s*(?P<values>\(.*\))$", re.DOTALL)
_ASSIGNED = re.compile(rf"^(?P<name>{_NAME})\s*=(?!=)\s*(?P<value>[^=<>]+)$", re.DOTALL)
_FINITE_SET = re.compile(r"^\\\{.*\\\}$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Ordered:
    """names: the variables in the order of the values, () where they have none. listed: names come one by one."""

    values: tuple[str, ...]
    names: tuple[str, ...] = ()
    listed: bool = False


def same(gold: str, answer: str, equal: Callable[[str, str], bool]) -> bool | None:
    """Whether two rewritten texts are the same tuple; None where either is none. equal: for two parts.

    Names are matched with names. A plain tuple has the order of its counterpart's names: as they stand in the
    reference, by the alphabet in an answer such as "y = 2, x = 1".
    """
    ours, theirs = _read(gold), _read(answer)
    if ours is not None and _FINITE_SET.match(answer):
        return False
    if ours is None or theirs is None:
        return None
    if len(ours.values) != len(theirs.values):
        return False
    if ours.names and theirs.names:
        if sorted(ours.names) != sorted(theirs.names):
            return False
        theirs = _ordered(theirs, ours.names)
    elif theirs.listed:
        theirs = _ordered(theirs, tuple(sorted(theirs.names)))
    return all(equal(one, other) for one, other in zip(ours.values, theirs.values, strict=True))


def _ordered(given: _Ordered, names: tuple[str, ...]) -> _Ordered:
    return _Ordered(tuple(given.values[given.names.index(name)] for name in names), names)


def _read(text: str) -> _Ordered | None:
    text = text.strip()
    names: tuple[str, ...] = ()
    if match := _NAMED_TUPLE.match(text):
        names = tuple(notation.split(match["names"]))
        text = match["values"]
    if text.startswith("(") and text.endswith(")") and len(notation.split(text)) == 1:
        values = tuple(notation.split(text[1:-1]))
        if len(values) > 1 and enclosed(text) and all(values) and (not names or len(names) == len(values)):
            return _Ordered(values, names)
        return None
    parts = [_ASSIGNED.match(part) for part in notation.split(text)]
    if len(parts) > 1 and all(parts):
        found = [(part["name"], part["value"].strip()) for part in parts if part is not None]
        if len({name for name, _ in found}) == len(found):
            return _Ordered(tuple(value for _, value in found), tuple(name for name, _ in found), listed=True)
    return None


def enclosed(text: str) -> bool:
    """Whether the first bracket closes at the end: (1)(2, 3) is a product."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False
