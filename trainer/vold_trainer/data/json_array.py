"""Rows of a file that is one array of JSON objects, as many published data sets are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_trainer.data.jsonl import read_lines
from vold_trainer.data.parsing import Parser, reason
from vold_trainer.data.quoting import MAX_QUOTED, quote
from vold_trainer.data.sharegpt import as_row
from vold_trainer.errors import UsageError

_SPACE = re.compile(r"[ \t\n\r]*")


def holds_array(path: Path) -> bool:
    """Whether the first character of the file, but for blanks, opens an array."""
    first = next((line.strip() for line in read_lines(path) if line.strip()), b"")
    return first.startswith(b"[")


def read_json_array(path: Path) -> Iterator[tuple[int, dict[str, Any] | UsageError]]:
    """(index from 0, object or error) of each element of the array. The text is in memory, and one element at a time.

    Raises UsageError that names the line where the text is no array of JSON: what follows cannot be told apart.
    """
    content = b"".join(read_lines(path))
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}): save the file as UTF-8"
        ) from error
    parser = Parser()
    at, index = _skip(text, _skip(text, 0) + 1), 0
    closed = text[at : at + 1] == "]"
    while not closed:
        try:
            value, end, refused = parser.scan(text, at)
        except ValueError as error:
            raise _not_json(path, text, getattr(error, "pos", at), reason(error)) from error
        yield index, _object(value, refused, f"{path}[{index}]", text, at)
        at, index = _skip(text, end), index + 1
        if text[at : at + 1] not in (",", "]"):
            raise _not_json(path, text, at, "a comma or the end of the array belongs here")
        closed = text[at] == "]"
        at = at if closed else _skip(text, at + 1)
    if rest := text[at + 1 :].strip():
        raise _not_json(path, text, text.index(rest, at + 1), "the array has ended before")


def _skip(text: str, at: int) -> int:
    """The position of the next character that is no blank."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _object(value: Any, refused: str, where: str, text: str, at: int) -> dict[str, Any] | UsageError:
    if refused:
        return UsageError(f"{where}: not JSON ({refused}): {quote(text[at : at + 2 * MAX_QUOTED])}")
    row = as_row(value)
    return row if row is not None else UsageError(f"{where}: a {type(value).__name__}, not an object: {quote(value)}")


def _not_json(path: Path, text: str, at: int, why: str) -> UsageError:
    line = text.count("\n", 0, at) + 1
    return UsageError(f"{path}:{line}: not JSON ({why}): {quote(text[at : at + 2 * MAX_QUOTED])}")
