"""JSON of rows: parsed so that whatever follows can work with the value, or refused in a few words."""

import json
from typing import Any

from vold_trainer.data.quoting import MAX_QUOTED, quote

MAX_DEPTH = 100
"""Levels of arrays and objects in each other. What reads a value later recurses, on stacks of its own."""


class Parser:
    """Parses JSON values. Raises ValueError that says in a few words why a text is refused: no JSON, a number of
    thousands of digits, more than MAX_DEPTH levels, or a key that is twice in an object, whose first value would be
    lost.
    """

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._twice: str | None = None

    def parse(self, text: str) -> Any:
        """The value of a text that is one JSON value."""
        self._twice = None
        try:
            return self._checked(self._decoder.decode(text), text)
        except RecursionError as error:
            raise _too_deep() from error

    def scan(self, text: str, at: int) -> tuple[Any, int, str]:
        """(the value that begins at character `at`, the character after it, why it is refused or ""): a value that is
        refused for what it holds does not hide where the next begins.
        """
        self._twice = None
        try:
            value, end = self._decoder.raw_decode(text, at)
        except RecursionError as error:
            raise _too_deep() from error
        try:
            return self._checked(value, text, at, end), end, ""
        except ValueError as error:
            return value, end, str(error)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            self._twice = next(key for key in row if keys.count(key) > 1)
        return row

    def _checked(self, value: Any, text: str, start: int = 0, end: int | None = None) -> Any:
        if self._twice is not None:
            raise ValueError(f"the key {quote(self._twice, 30)} twice in an object")
        end = len(text) if end is None else end
        # Counting is a hundred times faster than walking through the value, and few texts have so many brackets.
        if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise _too_deep()
        return value


def parse_json(text: str) -> Any:
    """The value of a text that is one JSON value. Raises as `Parser`."""
    return Parser().parse(text)


def reason(error: ValueError) -> str:
    """The beginning of the error, for the middle of a sentence."""
    return str(error)[:MAX_QUOTED]


def _too_deep() -> ValueError:
    return ValueError(f"more than {MAX_DEPTH} levels of arrays and objects")


def _depth(value: Any) -> int:
    """Levels of arrays and objects in each other, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth
