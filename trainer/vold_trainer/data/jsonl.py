"""Rows of JSONL: one JSON object per line, in UTF-8, or in UTF-16 or UTF-32 with its mark."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_trainer.errors import UsageError

_MARKS = {  # those of UTF-32 first: that of UTF-16 begins like them
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

MAX_QUOTED = 60
"""Characters of a line in an error."""


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | UsageError]]:
    """(line number from 1, object or error) of each line of a JSONL file; empty lines are skipped.

    Raises UsageError for a file in UTF-16 or UTF-32 that breaks off.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, read_object(line, f"{path}:{number}")


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file in UTF-8, without the mark at its beginning. Raises as `read_jsonl`."""
    with path.open("rb") as file:
        start = file.read(4)
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
        if encoding is None:
            file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
            yield from file
            return
    with path.open(encoding=encoding, newline="\n") as text:
        try:
            for line in text:
                yield line.encode(errors="surrogatepass")
        except UnicodeError as error:
            raise UsageError(f"{path} is not {encoding.upper()}, as it begins ({error}): save it as UTF-8") from error


def read_object(line: bytes, where: str) -> dict[str, Any] | UsageError:
    """The object of a line, or the error of the row `where`."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return UsageError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}): save the file as UTF-8"
        )
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nested too deeply
        return UsageError(f"{where}: not JSON ({str(error)[:MAX_QUOTED]}): {text.strip()[:MAX_QUOTED]!r}")
    if not isinstance(row, dict):
        return UsageError(f"{where}: a {type(row).__name__}, not an object: {text.strip()[:MAX_QUOTED]!r}")
    return row
