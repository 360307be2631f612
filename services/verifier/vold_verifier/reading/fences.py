"""The fenced code blocks of a Markdown text."""

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^[ \t]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)(?P<rest>[^\n]*)$", re.MULTILINE)
_ON_ONE_LINE = re.compile(r"^(?P<inside>.*?)(?P<mark>`{3,}|~{3,})[ \t\r]*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A closed block. language: the first word after the opening fence, in lower case, or ""."""

    language: str
    text: str


def closed_blocks(text: str) -> list[Block]:
    """The closed blocks of `text`, in order.

    A fence closes with at least as many marks as it opened with, and no word after them; so the closing fence of one
    block never opens another. A block may stand on one line: ```json {"a": 1}```.
    """
    blocks: list[Block] = []
    opening: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opening is None:
            closed = _ON_ONE_LINE.match(match["rest"])
            if closed is not None and closed["mark"] == match["mark"]:
                blocks.append(Block(match["language"].lower(), closed["inside"]))
            else:
                opening = match
        elif match["mark"].startswith(opening["mark"]) and not match["language"] and not match["rest"].strip():
            blocks.append(Block(opening["language"].lower(), text[opening.end() + 1 : match.start()]))
            opening = None
    return blocks
