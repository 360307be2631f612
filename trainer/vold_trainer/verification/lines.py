"""The lines of `vold verify`: input lines to items for the verifier, verdicts and errors to output lines."""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from vold_client import Item, Verdict

from vold_trainer.data.examples import Example, require_characters
from vold_trainer.data.messages import read_messages
from vold_trainer.data.numbers import number_text
from vold_trainer.data.traces import TRACE_FIELD_COLUMNS

MAX_SHOWN = 60
"""Characters of a name or a reason in an error."""

FIELDS = ("id", "completion", "reference", "prompt", "options", "parameters", "verifier")
OTHER_NAMES = {"params": "parameters", "answer": "reference"}
UNREAD = frozenset(column for columns in TRACE_FIELD_COLUMNS.values() for column in columns) - {*FIELDS, *OTHER_NAMES}
"""Columns of data sets and traces that a verifier has no use for."""

_ITEM_INDEX = re.compile(r"items\[\d+\]\.?")


@dataclass(slots=True)
class Line:
    """One line of the input. number: from 1. id: from the input, or else the number. item: None if the line is invalid;
    then `error` says why. end_offset: bytes of the file up to the end of the line.
    """

    number: int
    id: Any
    item: Item | None = None
    error: str = ""
    end_offset: int = 0


@dataclass(slots=True)
class LineParser:
    """verifier: for lines without a field `verifier`. verifiers_with_options: names of the verifiers that have a
    parameter `options`.
    """

    verifier: str
    verifiers_with_options: frozenset[str] = field(default_factory=frozenset)

    def parse(self, text: bytes, number: int) -> Line:
        """Parse one line. Never raises: an invalid line has an `error`."""
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            return Line(number, number, error=f"is not JSON ({error.msg} at character {error.pos + 1})")
        except (ValueError, RecursionError) as error:  # not UTF-8, or nested too deeply
            return Line(number, number, error=f"is not JSON ({error})")
        if not isinstance(row, dict):
            return Line(number, number, error=f"is {_json_type(row)}, not an object with a completion and a reference")
        line = Line(number, row.get("id", number))
        if line.id is None or isinstance(line.id, dict | list) or _is_not_finite(line.id):
            line.id, line.error = number, f"id is {_json_type(line.id)}: give a string or a number"
            return line
        try:
            line.id = number
            require_characters(row.get("id"))
            line.id = row.get("id", number)
            require_characters(row)
            line.item = self._item(row)
        except ValueError as error:
            line.error = str(error)
        return line

    def _item(self, row: Mapping[str, Any]) -> Item:
        row = _named(row)
        verifier = _text(row, "verifier", self.verifier)
        if not verifier:
            raise ValueError("no verifier: set the field 'verifier' of the line, or give --verifier")
        if "completion" not in row:
            raise ValueError("completion is missing")
        parameters = _parameters(row.get("parameters"))
        options = _options(row.get("options"))
        if options and verifier in self.verifiers_with_options:
            parameters.setdefault("options", options)
        return Item(
            verifier=verifier,
            completion=_text(row, "completion"),
            reference=_text(row, "reference"),
            prompt=_text(row, "prompt") or _last_turn(row.get("messages")),
            parameters=parameters,
        )


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the names of FIELDS. Raises ValueError for a field that is not known, or there twice."""
    named: dict[str, Any] = {}
    for key, value in row.items():
        name = OTHER_NAMES.get(key, key)
        if name not in FIELDS and name not in UNREAD:
            near = difflib.get_close_matches(key, (*FIELDS, *OTHER_NAMES), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(FIELDS)}; take it out"
            raise ValueError(f"unknown field {key[:MAX_SHOWN]!r}; {hint}")
        if named.get(name) is not None and value is not None:
            other = next(key for key, meant in OTHER_NAMES.items() if meant == name)
            raise ValueError(f"{name} and {other} are the same field: keep one")
        if value is not None or name not in named:
            named[name] = value
    return named


def _parameters(value: Any) -> dict[str, Any]:
    """The parameters, which rows of data may hold as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"parameters is no JSON ({str(error)[:MAX_SHOWN]})") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"parameters is {_json_type(value)}: give an object with the verifier's parameters")
    return dict(value or {})


def _last_turn(messages: Any) -> str:
    """The prompt of a row that has it as messages, as a run gives it to the verifier."""
    if messages is None:
        return ""
    try:
        turns, _ = read_messages(messages)
    except ValueError as error:
        raise ValueError(f"messages{error}") from error
    return Example("", tuple(turns), "").prompt_text


def _text(row: Mapping[str, Any], name: str, default: str = "") -> str:
    value = row.get(name)
    if value is None and name != "completion":
        return default
    if name == "reference" and (text := number_text(value)) is not None:
        return text
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_json_type(value)}: give a string")
    return value


def _options(value: Any) -> dict[str, str]:
    """Option texts by letter, from {"A": text, ...}, [{"A": text}, ...] or [text, ...]. A number is a text too."""
    if value is None:
        return {}
    parts = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
        if len(value) > len(ascii_uppercase):
            raise ValueError(f"options holds {len(value)} texts, over the limit of {len(ascii_uppercase)}: send fewer")
        parts = [{letter: text} for letter, text in zip(ascii_uppercase, value, strict=False)]
    options: dict[str, str] = {}
    for part in parts:
        if not isinstance(part, dict):
            raise ValueError(f'options holds {_json_type(part)}: give {{"A": text, ...}} or [text, ...]')
        for letter, text in part.items():
            if letter in options:
                raise ValueError(f"options names {letter!r} twice")
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                raise ValueError(f"option {letter!r} is {_json_type(text)}: give a string or a number")
            options[letter] = str(text)
    return options


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _json_type(value: Any) -> str:
    if _is_not_finite(value):
        return "no finite number"
    names = {str: "a string", bool: "a boolean", dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), "a number")


def output_row(line: Line, verdict: Verdict | None) -> dict[str, Any]:
    """The output line as a dict. reward and correct are None if there is an error."""
    error = error_message(line, verdict)
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


def error_message(line: Line, verdict: Verdict | None) -> str | None:
    """Why the line has no verdict, or None. The message names the line instead of the item's index in its request."""
    if verdict is None:
        return f"line {line.number}: {line.error}"
    if verdict.error is None:
        return None
    message = _ITEM_INDEX.sub("", verdict.error.message)
    field_name = _ITEM_INDEX.sub("", verdict.error.field)
    prefix = f"{field_name}: " if field_name and field_name not in message else ""
    return f"line {line.number}: {verdict.error.code}: {prefix}{message}"


def is_broken_line(verdict: Verdict | None) -> bool:
    """Whether the line itself is invalid; a timeout or a failed worker is no fault of the line."""
    if verdict is None:
        return True
    return verdict.error is not None and verdict.error.code in ("INVALID_ARGUMENT", "NOT_FOUND")
