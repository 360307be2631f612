"""Rows of JSONL: one JSON object per line, in UTF-8, or in UTF-16 or UTF-32 with its mark."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vold_trainer.data.parsing import Parser, reason
from vold_trainer.data.quoting import quote
from vold_trainer.data.sharegpt import as_row
from vold_trainer.errors import UsageError

_MARKS = {  # those of UTF-32 first: that of UTF-16 begins like them
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | UsageError]]:
    """(line number from 1, object or error) of each line of a JSONL file; empty lines are skipped.

    Raises UsageError for a file in UTF-16 or UTF-32 that breaks off.
    """
    parser = Parser()
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, read_object(line, f"{path}:{number}", parser)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file in UTF-8, without the mark at its beginning. Raises as `read_jsonl`."""
    with path.open("rb") as file:
        yield from decoded_lines(file, str(path))


def decoded_lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines of a file or a pipe, as `read_lines`. name: of the file, for errors."""
    first = file.readline()
    encoding = next((kind for mark, kind in _MARKS.items() if first.startswith(mark)), None)
    if encoding is None:
        if first:
            yield first.removeprefix(codecs.BOM_UTF8)
        yield from file
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    begun: list[str] = []  # of a line that goes on
    block = first
    try:
        while block:
            *lines, rest = decoder.decode(block).split("\n")
            for line in lines:
                yield ("".join((*begun, line)) + "\n").encode(errors="surrogatepass")
                begun = []
            begun.append(rest)
            block = file.read(1 << 16)
        begun.append(decoder.decode(b"", final=True))
    except UnicodeError as error:
        raise UsageError(f"{name} is not {encoding.upper()}, as it begins ({error}): save it as UTF-8") from error
    if last := "".join(begun):
        yield last.encode(errors="surrogatepass")


def read_object(line: bytes, where: str, parser: Parser | None = None) -> dict[str, Any] | UsageError:
    """The object of a line, or the error of the row `where`. parser: of many lines, one after the other."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return UsageError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}): save the file as UTF-8"
        )
    try:
        value = (parser or Parser()).parse(text)
    except ValueError as error:
        return UsageError(f"{where}: not JSON ({reason(error)}): {quote(text.strip())}")
    row = as_row(value)
    if row is None:
        return UsageError(f"{where}: a {type(value).__name__}, not an object: {quote(text.strip())}")
    return row
