"""Rows of a file that is one array of JSON objects, as many published data sets are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_trainer.data.jsonl import MAX_QUOTED, read_lines
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
    decoder = json.JSONDecoder()
    at, index = _skip(text, _skip(text, 0) + 1), 0
    closed = text[at : at + 1] == "]"
    while not closed:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nested too deeply
            raise _not_json(path, text, getattr(error, "pos", at), str(error)) from error
        yield index, _object(value, path, index)
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


def _object(value: Any, path: Path, index: int) -> dict[str, Any] | UsageError:
    if isinstance(value, dict):
        return value
    return UsageError(f"{path}[{index}]: a {type(value).__name__}, not an object: {str(value)[:MAX_QUOTED]!r}")


def _not_json(path: Path, text: str, at: int, why: str) -> UsageError:
    line = text.count("\n", 0, at) + 1
    return UsageError(f"{path}:{line}: not JSON ({why[:MAX_QUOTED]}): {text[at : at + MAX_QUOTED]!r}")
