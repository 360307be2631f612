"""Extract the answer from a completion.

Only the final part counts: the text after the thinking, without text copied from the prompt. The places of
`Extraction.accept` are tried in order, and the first place that holds any text gives the answer. A bare number at the
end of a sentence is an answer only if `accept` names `last_number`.

Of several boxes the last one counts. Boxes joined by a conjunction ("\\boxed{1} or \\boxed{2}") are one answer with
several parts.
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
MAX_CHARS_BETWEEN_BOXES = 60
MAX_JOINED_BOXES = 50

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|\{+|\}+", re.DOTALL)  # an escaped character is one token and does not count as a brace
_ONLY_A_BOX = re.compile(r"^\s*\\(?:boxed|fbox)\s*\{(?P<inner>.*)\}\s*$", re.DOTALL)
_BETWEEN_JOINED_BOXES = re.compile(
    r"[\s$,;.*_()&/|]*(?:\\[()\[\],; ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and|or|also|either|else"
    r"|maybe|perhaps|possibly|probably|alternatively|it could be|could be|might be|[\s$,;.*_()&/|])*"
    r"(?:\$?[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^[^\S\n]*####[^\S\n]*(?P<answer>\S.*)$", re.MULTILINE)
_STATEMENT = re.compile(r"\b(?:answer|result)\s+is\s*:?\s+", re.IGNORECASE)
_ANSWER_LINE = (
    re.compile(  # possessive quantifiers before the word: otherwise a line of marks is retried from each mark
        r"^[^\S\n]*+[>*_#-]*+[^\S\n]*+[*_]*+(?:the\s)?(?:final\s|correct\s)?(?:answer|答案)"
        r"[*_]*(?:\sis)?[*_ ]{0,4}[:：](?P<answer>.*)$",
        re.IGNORECASE | re.MULTILINE,
    )
)
_ANSWER_IS = re.compile(r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|:)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:/\d+)?%?")


class Extraction(Parameters):
    """The parameters that every verifier with an extracted answer has."""

    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description=(
            "where an answer may stand; the first place that holds any text wins: boxed, the last balanced \\boxed{}; "
            "answer_tag, the last <answer>...</answer>; answer_line, the last line that starts with 'Answer:' or "
            "'####'; statement, the text after 'the answer is' at the very end; whole, the final part if it is one "
            "short line; final_part, the text after the thinking; last_number, the last number in the final part"
        ),
    )
    think_tag: str = Field(default="think", pattern=r"^[A-Za-z][\w-]*$", description="the tag around the thinking")
    answer_tag: str = Field(default="answer", pattern=r"^[A-Za-z][\w-]*$", description="the tag that answer_tag reads")


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """The answer of a completion, or the reason why there is no answer.

    answer: the text at the accepted place, or None. reason: the name of the place, or why `answer` is None. rule: the
    anti-hacking rule that refused the answer, or "". box_count: how many different boxes are joined in `answer`.
    """

    answer: str | None
    reason: str
    rule: str = ""
    box_count: int = 1


def final_part(completion: str, think_tag: str = "think", prompt: str = "") -> str | None:
    """The text after the last closing think tag, or None if the thinking never ends.

    Without think tags the final part is the whole completion. If the prompt ends with the opening tag, the completion
    starts inside the thinking. The case of tags is ignored.
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


def boxed_contents(text: str) -> tuple[list[str], bool]:
    r"""(contents of each outermost balanced `\boxed{}`, in order; whether any box is unclosed). Takes linear time."""
    spans, unclosed = _box_spans(text)
    return [text[start:end] for _, start, end in spans], unclosed


def _box_spans(text: str) -> tuple[list[tuple[int, int, int]], bool]:
    """((start of the command, start and end of its contents) of each balanced box; whether any box is unclosed)."""
    openings = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    if not openings:
        return [], False
    closing: dict[int, int] = {}
    open_runs: list[tuple[int, int]] = []  # of braces: (end of the first brace, count); a box opens with the first
    for token in _BRACES.finditer(text, openings[0][1] - 1):
        position, end = token.span()
        if text[position] == "{":
            open_runs.append((position + 1, end - position))
        elif text[position] == "}":
            while position < end and open_runs:
                first, count = open_runs.pop()
                closed = min(count, end - position)
                position += closed
                if closed == count:
                    closing[first] = position - 1
                else:
                    open_runs.append((first, count - closed))
    spans, past = [], 0
    for command, start in openings:
        box_end = closing.get(start)
        if box_end is not None and start > past:
            spans.append((command, start, box_end))
            past = box_end
    return spans, any(start not in closing for _, start in openings)


def find(completion: str, extraction: Extraction, prompt: str = "", *, allow_hidden: bool = False) -> ExtractedAnswer:
    """Extract the answer of `completion` by the rules of `extraction`.

    allow_hidden: allow the characters that `hacking.has_hidden_characters` detects.
    """
    text = final_part(completion, extraction.think_tag, prompt)
    if text is None:
        return ExtractedAnswer(
            None, f"the thinking never ends: no </{extraction.think_tag}>", rule=hacking.UNCLOSED_TAG
        )
    text_without_echo = hacking.remove_echo(text, prompt) if prompt else text
    for place in extraction.accept:
        extracted = read_place(text_without_echo, place, extraction)
        if extracted is not None:
            if extracted.answer is not None and not allow_hidden and hacking.has_hidden_characters(extracted.answer):
                reason = "the answer contains hidden characters, or characters that reverse the direction of text"
                return ExtractedAnswer(None, reason, rule=hacking.HIDDEN_CHARACTERS)
            return extracted
    reason = "no answer in any accepted place: " + ", ".join(extraction.accept)
    if len(text_without_echo) < len(text) and any(read_place(text, place, extraction) for place in extraction.accept):
        return ExtractedAnswer(None, "the answer is a copy of the prompt", rule=hacking.ECHOED_PROMPT)
    if len(text) < len(completion) and any(
        read_place(completion, place, extraction) for place in ("boxed", "answer_line")
    ):
        return ExtractedAnswer(None, "the only answer is inside the thinking", rule=hacking.ANSWER_IN_THINKING)
    return ExtractedAnswer(None, reason, rule="" if text_without_echo.strip() else hacking.EMPTY_ANSWER)


def read_place(text: str, place: str, extraction: Extraction) -> ExtractedAnswer | None:
    """The answer at `place`, or None if `place` holds no text."""
    if place == "boxed":
        return _read_boxes(text)
    if place == "answer_tag":
        return _read_answer_tag(text, extraction.answer_tag)
    if place == "answer_line":
        lines = answer_lines(text)
        return ExtractedAnswer(lines[-1], "answer line") if lines else None
    if place == "statement":
        return _read_statement(text)
    if place == "whole":
        line = text.strip()
        return ExtractedAnswer(line, "whole") if line and "\n" not in line and len(line) <= MAX_WHOLE_CHARS else None
    if place == "final_part":
        return ExtractedAnswer(text.strip(), "final part") if text.strip() else None
    numbers = [m.group() for m in _NUMBER.finditer(text) if m.group()]
    return ExtractedAnswer(numbers[-1], "last number") if numbers else None


def answer_lines(text: str) -> list[str]:
    """The text after "Answer:" or "####" of each line that starts with it, without emphasis marks; no empty texts."""
    matches = list(_ANSWER_LINE.finditer(text))
    if "####" in text:
        matches = sorted([*matches, *_HASHES.finditer(text)], key=lambda match: match.start())
    return [answer for match in matches if (answer := match["answer"].strip(" \t\r*_"))]


def _read_boxes(text: str) -> ExtractedAnswer | None:
    spans, unclosed = _box_spans(text)
    if not spans:
        rule = hacking.UNCLOSED_TAG
        return ExtractedAnswer(None, r"the last \boxed{ is never closed", rule=rule) if unclosed else None
    contents = [text[spans[-1][1] : spans[-1][2]]]
    near = spans[-MAX_JOINED_BOXES:]
    for (_, start, end), (following, _, _) in zip(reversed(near[:-1]), reversed(near[1:]), strict=True):
        if following - end > MAX_CHARS_BETWEEN_BOXES or not _BETWEEN_JOINED_BOXES.fullmatch(text, end + 1, following):
            break
        contents.insert(0, text[start:end])
    different = list(dict.fromkeys(_strip_boxes(content) for content in contents))
    return _answer_at(", ".join(different), "boxed", len(different))


def _strip_boxes(content: str) -> str:
    while match := _ONLY_A_BOX.match(content):
        content = match["inner"]
    return content.strip()


def _read_answer_tag(text: str, tag: str) -> ExtractedAnswer | None:
    if "<" not in text:
        return None
    opening, closing = _tags(tag)
    starts, ends = list(opening.finditer(text)), list(closing.finditer(text))
    if starts and (not ends or starts[-1].start() > ends[-1].start()):
        return ExtractedAnswer(None, f"the last <{tag}> is never closed", rule=hacking.UNCLOSED_TAG)
    before = [start for start in starts if ends and start.end() <= ends[-1].start()]
    return _answer_at(text[before[-1].end() : ends[-1].start()], "answer tag") if before else None


def _read_statement(text: str) -> ExtractedAnswer | None:
    line = text.rstrip().rpartition("\n")[2]
    if len(line) > MAX_STATED_CHARS:
        line = line[-MAX_STATED_CHARS:]
    matches = list(_STATEMENT.finditer(line))
    if not matches:
        return None
    ends = [match.start() for match in matches[1:]]
    stated = {line[match.end() : end].strip(" .$*") for match, end in zip(matches, [*ends, len(line)], strict=True)}
    if len(matches) > 1 and len(stated) > 1:
        reason = "one line states several different answers"
        return ExtractedAnswer(None, reason, rule=hacking.SEVERAL_ANSWERS)
    answer = line[matches[-1].end() :].strip(" \t\r*_")
    return ExtractedAnswer(answer, "statement") if answer else None


def _answer_at(answer: str, place: str, box_count: int = 1) -> ExtractedAnswer:
    if answer.strip():
        return ExtractedAnswer(answer.strip(), place, box_count=box_count)
    return ExtractedAnswer(None, f"the {place} answer is empty", rule=hacking.EMPTY_ANSWER)


def reference_text(reference: str) -> str:
    r"""The answer in a reference: the inside of its last \boxed{}, or the text after GSM8K's `####` or "answer is"."""
    _, mark, after = reference.rpartition("####")
    text = after if mark else reference
    contents, _ = boxed_contents(text)
    return (_strip_boxes(contents[-1]) if contents else _ANSWER_IS.sub("", text, count=1)).strip()
