"""The lines of `vold verify`: input lines to items for the verifier, verdicts and errors to output lines."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vold_client import Item, Verdict

from vold_trainer.data.examples import Example, require_characters
from vold_trainer.data.fields import FieldError, completion_text, read_options, read_parameters, reference_text
from vold_trainer.data.jsonl import read_object
from vold_trainer.data.messages import read_messages
from vold_trainer.data.parsing import Parser
from vold_trainer.data.quoting import quote
from vold_trainer.data.traces import TRACE_FIELD_COLUMNS
from vold_trainer.errors import UsageError

FIELDS = ("id", "completion", "reference", "prompt", "options", "parameters", "verifier")
OTHER_NAMES = {"params": "parameters", "answer": "reference"}
UNREAD = frozenset(column for columns in TRACE_FIELD_COLUMNS.values() for column in columns) - {*FIELDS, *OTHER_NAMES}
"""Columns of data sets and traces that a verifier has no use for."""

_ITEM_INDEX = re.compile(r"items\[\d+\]\.?")


@dataclass(slots=True)
class Line:
    """One line of the input. number: from 1. id: from the input, or else the number. where: names the line in errors.
    item: None if the line is invalid; then `error` says why. end_offset: bytes of the file up to the end of the line.
    """

    number: int
    id: Any
    where: str = ""
    item: Item | None = None
    error: str = ""
    end_offset: int = 0


@dataclass(slots=True)
class LineParser:
    """verifier: for lines without a field `verifier`. verifiers_with_options: names of the verifiers that have a
    parameter `options`. file: names the lines in errors, FILE:LINE; empty for a pipe.
    """

    verifier: str
    verifiers_with_options: frozenset[str] = field(default_factory=frozenset)
    file: str = ""
    _parser: Parser = field(default_factory=Parser)

    def parse(self, text: bytes, number: int) -> Line:
        """Parse one line. Never raises: an invalid line has an `error`."""
        where = f"{self.file}:{number}" if self.file else f"line {number}"
        row = read_object(text, where, self._parser)
        if isinstance(row, UsageError):
            return Line(number, number, where, error=str(row))
        line = Line(number, number, where)
        try:
            line.id = _id(row, number)
            item = self._item(row)
            require_characters(row)
            line.item = item
        except ValueError as error:
            line.error = f"{where}: {error}"
        return line

    def _item(self, row: Mapping[str, Any]) -> Item:
        row = _named(row)
        verifier = _text(row, "verifier", self.verifier)
        if not verifier:
            raise ValueError("no verifier: set the field 'verifier' of the line, or give --verifier")
        parameters = read_parameters(row["parameters"]) if row.get("parameters") is not None else {}
        options = read_options(row["options"]) if row.get("options") is not None else {}
        if options and verifier in self.verifiers_with_options:
            parameters.setdefault("options", options)
        return Item(
            verifier=verifier,
            completion=completion_text(row.get("completion")),
            reference=reference_text(row["reference"]) if row.get("reference") is not None else "",
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
            raise ValueError(f"unknown field {quote(key)}; {hint}")
        if named.get(name) is not None and value is not None:
            other = next(key for key, meant in OTHER_NAMES.items() if meant == name)
            raise ValueError(f"{name} and {other} are the same field: keep one")
        if value is not None or name not in named:
            named[name] = value
    return named


def _last_turn(messages: Any) -> str:
    """The prompt of a row that has it as messages, as a run gives it to the verifier."""
    if messages is None:
        return ""
    try:
        turns, _ = read_messages(messages)
    except ValueError as error:
        position, _, problem = str(error).partition(" ")
        raise FieldError(f"messages{position}", problem) from error
    return Example("", tuple(turns), "").prompt_text


def _text(row: Mapping[str, Any], name: str, default: str = "") -> str:
    value = row.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise FieldError.of(name, value, "give text")
    return value


def _id(row: Mapping[str, Any], number: int) -> Any:
    """The id of a line, its number if it has none. Raises FieldError for what names no line."""
    name = row.get("id", number)
    if not isinstance(name, str | int | float) or (isinstance(name, float) and not math.isfinite(name)):
        raise FieldError.of("id", name, "give a text or a number")
    require_characters(name)
    return name


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
        return line.error
    if verdict.error is None:
        return None
    message = _ITEM_INDEX.sub("", verdict.error.message)
    field_name = _ITEM_INDEX.sub("", verdict.error.field)
    prefix = f"{field_name}: " if field_name and field_name not in message else ""
    return f"{line.where}: {verdict.error.code}: {prefix}{message}"


def is_broken_line(verdict: Verdict | None) -> bool:
    """Whether the line itself is invalid; a timeout or a failed worker is no fault of the line."""
    if verdict is None:
        return True
    return verdict.error is not None and verdict.error.code in ("INVALID_ARGUMENT", "NOT_FOUND")
