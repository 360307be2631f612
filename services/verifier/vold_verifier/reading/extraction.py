"""Where the answer stands in a completion.

Only the part after the thinking counts, without what is copied from the prompt. Of that, the first place of
`Extraction.accept` that holds anything is the answer; a bare number at the end of a sentence is one only where
`last_number` is accepted by name.

Of several boxes the last one counts. Boxes in one breath ("\\boxed{1} or \\boxed{2}") are one answer of several parts.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import Field

from vold_verifier.reading import hacking
from vold_verifier.types import Parameters

Place = Literal["boxed", "answer_tag", "answer_line", "statement", "whole", "final_part", "last_number"]

MAX_WHOLE_CHARS = 200
MAX_STATED_CHARS = 300
MAX_BETWEEN_CHARS = 60
MAX_JOINED_BOXES = 50

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|\{+|\}+", re.DOTALL)  # an escaped brace is taken as one token and counts for nothing
_WRAPPED = re.compile(r"^\s*\\(?:boxed|fbox)\s*\{(?P<inner>.*)\}\s*$", re.DOTALL)
_ONE_BREATH = re.compile(
    r"[\s$,;.*_()&/|]*(?:\\[()\[\],; ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and|or|also|either|else"
    r"|maybe|perhaps|possibly|probably|alternatively|it could be|could be|might be|[\s$,;.*_()&/|])*"
    r"(?:\$?[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^[^\S\n]*####[^\S\n]*(?P<answer>\S.*)$", re.MULTILINE)
_STATEMENT = re.compile(r"\b(?:answer|result)\s+is\s*:?\s+", re.IGNORECASE)
_ANSWER_LINE = re.compile(  # possessive before the word: a line of marks is not tried again from each of them
    r"^[^\S\n]*+[>*_#-]*+[^\S\n]*+[*_]*+(?:the\s)?(?:final\s|correct\s)?(?:answer|答案)"
    r"[*_]*(?:\sis)?[*_ ]{0,4}[:：](?P<answer>.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_IS = re.compile(r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|:)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:/\d+)?%?")


class Extraction(Parameters):
    """The parameters of every verifier that reads an answer out of a completion."""

    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description=(
            "where an answer may stand, first found wins: boxed, the last balanced \\boxed{}; answer_tag, the last "
            "<answer>...</answer>; answer_line, the last line that starts with 'Answer:' or '####'; statement, what "
            "follows 'the answer is' at the very end; whole, the final part when it is one short line and nothing "
            "else; final_part, all of it; last_number, the last number in it"
        ),
    )
    think_tag: str = Field(default="think", pattern=r"^[A-Za-z][\w-]*$", description="the tag around the thinking")
    answer_tag: str = Field(default="answer", pattern=r"^[A-Za-z][\w-]*$", description="the tag that answer_tag reads")


@dataclass(frozen=True, slots=True)
class Found:
    """answer: the text at the accepted place, None where there is none. reason: why there is none, or the place.
    final: no answer, and nowhere else to look for one (an empty or unclosed box). rule: the anti-hacking rule that left
    no answer, or "". boxes: how many different boxes the answer is joined from.
    """

    answer: str | None
    reason: str
    final: bool = False
    rule: str = ""
    boxes: int = 1


def final_part(completion: str, think_tag: str = "think", prompt: str = "") -> str | None:
    """What follows the last closing think tag, or all of it where there is no thinking; None where it never closes.

    A prompt that ends with the opening tag has opened the thinking. Tags are found in upper and lower case.
    """
    opening, closing = _tags(think_tag)
    end = None
    tail = completion
    if "<" in completion:
        for match in closing.finditer(completion):
            end = match.end()
        tail = completion[end:]
        if opening.search(tail):
            return None
    if end is None and prompt and prompt.rstrip().endswith(f"<{think_tag}>"):
        return None
    return tail


@lru_cache(maxsize=64)
def _tags(tag: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(rf"<\s?{tag}\s?>", re.IGNORECASE), re.compile(rf"<\s?/\s?{tag}\s?>", re.IGNORECASE)


def boxes(text: str) -> tuple[list[str], bool]:
    r"""The contents of the balanced `\boxed{}` in order, outermost only, and whether any box stays open. Linear."""
    spans, unclosed = _box_spans(text)
    return [text[start:end] for _, start, end in spans], unclosed


def _box_spans(text: str) -> tuple[list[tuple[int, int, int]], bool]:
    """(start of the command, start and end of its contents) of each balanced box, and whether any box stays open."""
    openings = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    if not openings:
        return [], False
    closing: dict[int, int] = {}
    runs: list[tuple[int, int]] = []  # (end of the first brace, how many) of those open; a box has the first of its run
    for token in _BRACES.finditer(text, openings[0][1] - 1):
        at, after = token.span()
        if text[at] == "{":
            runs.append((at + 1, after - at))
        elif text[at] == "}":
            while at < after and runs:
                first, count = runs.pop()
                closed = min(count, after - at)
                at += closed
                if closed == count:
                    closing[first] = at - 1
                else:
                    runs.append((first, count - closed))
    spans, past = [], 0
    for command, start in openings:
        end = closing.get(start)
        if end is not None and start > past:
            spans.append((command, start, end))
            past = end
    return spans, any(start not in closing for _, start in openings)


def find(completion: str, extraction: Extraction, prompt: str = "", *, hidden: bool = False) -> Found:
    """The answer of `completion` by the rules of `extraction`.

    hidden: allow the characters that `hacking.hidden_characters` refuses.
    """
    text = final_part(completion, extraction.think_tag, prompt)
    if text is None:
        return Found(
            None, f"the thinking never ends: no </{extraction.think_tag}>", final=True, rule=hacking.UNCLOSED_TAG
        )
    own = hacking.without_echo(text, prompt) if prompt else text
    for place in extraction.accept:
        found = at(own, place, extraction)
        if found is not None:
            if found.answer is not None and not hidden and hacking.hidden_characters(found.answer):
                reason = "the answer has characters in it that are not what they show"
                return Found(None, reason, final=True, rule=hacking.HIDDEN_CHARACTERS)
            return found
    reason = "no answer in any accepted place: " + ", ".join(extraction.accept)
    if len(own) < len(text) and any(at(text, place, extraction) for place in extraction.accept):
        return Found(None, "the answer is a copy of the prompt", rule=hacking.ECHOED_PROMPT)
    if len(text) < len(completion) and any(at(completion, place, extraction) for place in ("boxed", "answer_line")):
        return Found(None, "the only answer stands inside the thinking", rule=hacking.ANSWER_IN_THINKING)
    return Found(None, reason, rule="" if own.strip() else hacking.EMPTY_ANSWER)


def at(text: str, place: str, extraction: Extraction) -> Found | None:
    """What stands at `place`, None for nothing."""
    if place == "boxed":
        return _boxed(text)
    if place == "answer_tag":
        return _tagged(text, extraction.answer_tag)
    if place == "answer_line":
        lines = answer_lines(text)
        return Found(lines[-1], "answer line") if lines else None
    if place == "statement":
        return _stated(text)
    if place == "whole":
        line = text.strip()
        return Found(line, "whole") if line and "\n" not in line and len(line) <= MAX_WHOLE_CHARS else None
    if place == "final_part":
        return Found(text.strip(), "final part") if text.strip() else None
    numbers = [m.group() for m in _NUMBER.finditer(text) if m.group()]
    return Found(numbers[-1], "last number") if numbers else None


def answer_lines(text: str) -> list[str]:
    """What stands after the "Answer:" or "####" of each line that begins so, without emphasis marks; empty ones left
    out."""
    matches = list(_ANSWER_LINE.finditer(text))
    if "####" in text:
        matches = sorted([*matches, *_HASHES.finditer(text)], key=lambda match: match.start())
    return [answer for match in matches if (answer := match["answer"].strip(" \t\r*_"))]


def _boxed(text: str) -> Found | None:
    spans, unclosed = _box_spans(text)
    if not spans:
        rule = hacking.UNCLOSED_TAG
        return Found(None, r"the last \boxed{ is never closed", final=True, rule=rule) if unclosed else None
    contents = [text[spans[-1][1] : spans[-1][2]]]
    near = spans[-MAX_JOINED_BOXES:]
    for (_, start, end), (following, _, _) in zip(reversed(near[:-1]), reversed(near[1:]), strict=True):
        if following - end > MAX_BETWEEN_CHARS or not _ONE_BREATH.fullmatch(text, end + 1, following):
            break
        contents.insert(0, text[start:end])
    different = list(dict.fromkeys(_unwrapped(content) for content in contents))
    return _found(", ".join(different), "boxed", len(different))


def _unwrapped(content: str) -> str:
    while match := _WRAPPED.match(content):
        content = match["inner"]
    return content.strip()


def _tagged(text: str, tag: str) -> Found | None:
    if "<" not in text:
        return None
    opening, closing = _tags(tag)
    starts, ends = list(opening.finditer(text)), list(closing.finditer(text))
    if starts and (not ends or starts[-1].start() > ends[-1].start()):
        return Found(None, f"the last <{tag}> is never closed", final=True, rule=hacking.UNCLOSED_TAG)
    before = [start for start in starts if ends and start.end() <= ends[-1].start()]
    return _found(text[before[-1].end() : ends[-1].start()], "answer tag") if before else None


def _stated(text: str) -> Found | None:
    line = text.rstrip().rpartition("\n")[2]
    if len(line) > MAX_STATED_CHARS:
        line = line[-MAX_STATED_CHARS:]
    matches = list(_STATEMENT.finditer(line))
    if not matches:
        return None
    ends = [match.start() for match in matches[1:]]
    stated = {line[match.end() : end].strip(" .$*") for match, end in zip(matches, [*ends, len(line)], strict=True)}
    if len(matches) > 1 and len(stated) > 1:
        reason = "one line says several times what the answer is, and not the same"
        return Found(None, reason, final=True, rule=hacking.SEVERAL_ANSWERS)
    answer = line[matches[-1].end() :].strip(" \t\r*_")
    return Found(answer, "statement") if answer else None


def _found(answer: str, place: str, boxes: int = 1) -> Found:
    if answer.strip():
        return Found(answer.strip(), place, boxes=boxes)
    return Found(None, f"the {place} answer is empty", final=True, rule=hacking.EMPTY_ANSWER)


def reference_text(reference: str) -> str:
    r"""A reference as its answer alone: what follows GSM8K's `####` or "answer is", the inside of a \boxed{}."""
    _, mark, after = reference.rpartition("####")
    text = after if mark else reference
    contents, _ = boxes(text)
    return (_unwrapped(contents[-1]) if contents else _ANSWER_IS.sub("", text, count=1)).strip()
