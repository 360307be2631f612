"""The lines of `vold verify`: JSON in, items for the verifier; verdicts, and what kept a line from one, out."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vold_client import Item, Verdict

FIELDS = ("id", "completion", "reference", "prompt", "options", "params", "verifier")
_PLACE = re.compile(r"items\[\d+\]\.?")


@dataclass(slots=True)
class Line:
    """One line of the input. number: from 1. id: as it was given, or the number. item: None where `fault` says why
    there is none. taken: bytes of the file up to its end.
    """

    number: int
    id: Any
    item: Item | None = None
    fault: str = ""
    taken: int = 0


@dataclass(slots=True)
class Reader:
    """verifier: judges the lines that name none. takes_options: the verifiers that have a parameter `options`."""

    verifier: str
    takes_options: frozenset[str] = field(default_factory=frozenset)

    def read(self, text: bytes, number: int) -> Line:
        """Never raises: what is wrong with a line is in its `fault`."""
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            return Line(number, number, fault=f"is not JSON ({error.msg} at character {error.pos + 1})")
        except (ValueError, RecursionError) as error:  # not UTF-8, or nested without end
            return Line(number, number, fault=f"is not JSON ({error})")
        if not isinstance(row, dict):
            return Line(number, number, fault=f"is {_kind(row)}, not an object with a completion and a reference")
        line = Line(number, row.get("id", number))
        if line.id is None or isinstance(line.id, dict | list):
            line.id, line.fault = number, f"id is {_kind(line.id)}: give a string or a number"
            return line
        try:
            line.item = self._item(row)
        except ValueError as error:
            line.fault = str(error)
        return line

    def _item(self, row: Mapping[str, Any]) -> Item:
        verifier = _text(row, "verifier", self.verifier)
        if not verifier:
            raise ValueError("no verifier: name one on the line, or with --verifier")
        if "completion" not in row:
            raise ValueError("completion is missing")
        params = row.get("params")
        if params is not None and not isinstance(params, dict):
            raise ValueError(f"params is {_kind(params)}: give an object with the verifier's parameters")
        parameters = dict(params or {})
        options = _options(row.get("options"))
        if options and verifier in self.takes_options:
            parameters.setdefault("options", options)
        return Item(
            verifier=verifier,
            completion=_text(row, "completion"),
            reference=_text(row, "reference"),
            prompt=_text(row, "prompt"),
            parameters=parameters,
        )


def _text(row: Mapping[str, Any], name: str, default: str = "") -> str:
    value = row.get(name)
    if value is None and name != "completion":
        return default
    if name == "reference" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}: give a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half of a surrogate pair in it, which is no character") from None
    return value


def _options(given: Any) -> dict[str, str]:
    """Option texts by letter, of {"A": text, ...} or of [{"A": text}, ...]."""
    if given is None:
        return {}
    parts = given if isinstance(given, list) else [given]
    options: dict[str, str] = {}
    for part in parts:
        if not isinstance(part, dict):
            raise ValueError(f'options holds {_kind(part)}: give {{"A": text, ...}} or [{{"A": text}}, ...]')
        for letter, text in part.items():
            if letter in options:
                raise ValueError(f"options names {letter!r} twice")
            if not isinstance(text, str):
                raise ValueError(f"option {letter!r} is {_kind(text)}: give a string")
            options[letter] = text
    return options


def _kind(value: Any) -> str:
    kinds = {str: "a string", bool: "a boolean", dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value), "a number")


def row_of(line: Line, verdict: Verdict | None) -> dict[str, Any]:
    """The output line. reward is null where there is an error."""
    error = error_of(line, verdict)
    verdict = verdict or Verdict("")
    return {
        "id": line.id,
        "reward": verdict.reward if error is None else None,
        "correct": verdict.correct if error is None else None,
        "extracted": verdict.extracted,
        "reason": verdict.reason,
        "error": error,
        "seconds": round(verdict.seconds, 6),
    }


def error_of(line: Line, verdict: Verdict | None) -> str | None:
    """What kept the line from a verdict, by its number and not by its place in a request."""
    if verdict is None:
        return f"line {line.number}: {line.fault}"
    if verdict.error is None:
        return None
    message = _PLACE.sub("", verdict.error.message)
    at = _PLACE.sub("", verdict.error.field)
    named = f"{at}: " if at and at not in message else ""
    return f"line {line.number}: {verdict.error.code}: {named}{message}"


def is_broken(verdict: Verdict | None) -> bool:
    """Whether the line itself is at fault, and not what it cost to judge it."""
    if verdict is None:
        return True
    return verdict.error is not None and verdict.error.code in ("INVALID_ARGUMENT", "NOT_FOUND")
