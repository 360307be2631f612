"""Where the answer stands in a completion.

Only the part after the thinking counts. Of that, the first place of `Extraction.accept` that holds anything is the
answer; a bare number at the end of a sentence is one only where `last_number` is accepted by name.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from vold_verifier.verifiers.base import Parameters

Place = Literal["boxed", "answer_tag", "answer_line", "whole", "final_part", "last_number"]

MAX_WHOLE_CHARS = 200

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is taken as one token and counts for nothing
_ANSWER_LINE = re.compile(
    r"^[^\S\n]*[>*_#-]*[^\S\n]*[*_]*(?:the\s)?(?:final\s|correct\s)?(?:answer|答案)"
    r"[*_]*(?:\sis)?[*_ ]{0,4}[:：](?P<answer>.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_IS = re.compile(r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|:)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:/\d+)?%?")


class Extraction(Parameters):
    """The parameters of every verifier that reads an answer out of a completion."""

    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "whole"),
        min_length=1,
        description=(
            "where an answer may stand, first found wins: boxed, the last balanced \\boxed{}; answer_tag, the last "
            "<answer>...</answer>; answer_line, the last line that starts with 'Answer:'; whole, the final part when "
            "it is one short line and nothing else; final_part, all of it; last_number, the last number in it"
        ),
    )
    think_tag: str = Field(default="think", pattern=r"^[A-Za-z][\w-]*$", description="the tag around the thinking")
    answer_tag: str = Field(default="answer", pattern=r"^[A-Za-z][\w-]*$", description="the tag that answer_tag reads")


@dataclass(frozen=True, slots=True)
class Found:
    """answer: the text at the accepted place, None where there is none. reason: why there is none, or the place.
    final: no answer, and nowhere else to look for one (an empty or unclosed box).
    """

    answer: str | None
    reason: str
    final: bool = False


def final_part(completion: str, think_tag: str = "think", prompt: str = "") -> str | None:
    """What follows the last closing think tag, or all of it where there is no thinking; None where it never closes.

    A prompt that ends with the opening tag has opened the thinking.
    """
    opening, closing = f"<{think_tag}>", f"</{think_tag}>"
    end = completion.rfind(closing)
    tail = completion[end + len(closing) :] if end >= 0 else completion
    if opening in tail or (end < 0 and prompt.rstrip().endswith(opening)):
        return None
    return tail


def boxes(text: str) -> tuple[list[str], bool]:
    r"""The contents of the balanced `\boxed{}` in order, outermost only, and whether any box stays open. Linear."""
    openings = [match.end() for match in _BOX.finditer(text)]
    if not openings:
        return [], False
    closing: dict[int, int] = {}
    stack: list[int] = []
    for token in _BRACE.finditer(text, openings[0] - 1):
        if token.group() == "{":
            stack.append(token.end())
        elif token.group() == "}" and stack:
            closing[stack.pop()] = token.start()
    contents, past = [], 0
    for start in openings:
        end = closing.get(start)
        if end is not None and start > past:
            contents.append(text[start:end])
            past = end
    return contents, any(start not in closing for start in openings)


def find(completion: str, extraction: Extraction, prompt: str = "") -> Found:
    """The answer of `completion` by the rules of `extraction`."""
    text = final_part(completion, extraction.think_tag, prompt)
    if text is None:
        return Found(None, f"the thinking never ends: no </{extraction.think_tag}>", final=True)
    for place in extraction.accept:
        if place == "boxed":
            contents, unclosed = boxes(text)
            if contents:
                return _found(contents[-1], "boxed")
            if unclosed:
                return Found(None, r"the last \boxed{ is never closed", final=True)
        elif place == "answer_tag":
            tagged = _last_tagged(text, extraction.answer_tag)
            if tagged is not None:
                return _found(tagged, "answer tag")
        elif place == "answer_line":
            if lines := answer_lines(text):
                return Found(lines[-1], "answer line")
        elif place == "whole":
            line = text.strip()
            if line and "\n" not in line and len(line) <= MAX_WHOLE_CHARS:
                return Found(line, "whole")
        elif place == "final_part":
            if text.strip():
                return Found(text.strip(), "final part")
        elif numbers := [m.group() for m in _NUMBER.finditer(text) if m.group()]:
            return Found(numbers[-1], "last number")
    return Found(None, "no answer in any accepted place: " + ", ".join(extraction.accept))


def answer_lines(text: str) -> list[str]:
    """What stands after the "Answer:" of each line that begins so, without emphasis marks; empty ones left out."""
    return [answer for match in _ANSWER_LINE.finditer(text) if (answer := match["answer"].strip(" \t\r*_"))]


def _found(answer: str, place: str) -> Found:
    return Found(answer.strip(), place) if answer.strip() else Found(None, f"the {place} answer is empty", final=True)


def _last_tagged(text: str, tag: str) -> str | None:
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[start + len(tag) + 2 : end] if start >= 0 else None


def reference_text(reference: str) -> str:
    r"""A reference as its answer alone: what follows GSM8K's `####` or "answer is", the inside of a \boxed{}."""
    _, mark, after = reference.rpartition("####")
    text = after if mark else reference
    contents, _ = boxes(text)
    return (contents[-1] if contents else _ANSWER_IS.sub("", text, count=1)).strip()
