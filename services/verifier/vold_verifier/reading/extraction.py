"""Extract the answer from a completion.

Only the final part counts: the text after the thinking, without text copied from the prompt. The places of
`Extraction.accept` are tried in order, and the first place that holds any text gives the answer; but an answer tag or a
brief answer line that stands after the last box replaces the box. A bare number at the end of a sentence is an answer
only if `accept` names `last_number` or `anywhere`.

Of several boxes the last one counts. Boxes joined by a conjunction ("\\boxed{1} or \\boxed{2}") are one answer with
several parts.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Literal

from pydantic import Field

from vold_verifier.reading import boxes, hacking, labels
from vold_verifier.types import Parameters

Place = Literal["boxed", "answer_tag", "answer_line", "statement", "whole", "final_part", "last_number", "anywhere"]

MAX_WHOLE_CHARS = 200
MAX_STATED_CHARS = 300
MIN_MARKED_CHARS = 4
MAX_BLOCK_CHARS = 1000
MAX_BRIEF_WORDS = 2
MAX_CHARS_BETWEEN_BOXES = 60

_BETWEEN_JOINED_BOXES = re.compile(
    r"[\s$,;.*_()&/|]*(?:\\[()\[\],; ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and|or|also|either|else"
    r"|maybe|perhaps|possibly|probably|alternatively|it could be|could be|might be|[\s$,;.*_()&/|])*"
    r"(?:\$?[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^[^\S\n]*####[^\S\n]*(?P<answer>\S.*)$", re.MULTILINE)
_ANSWER_IS = re.compile(r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|:)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:/\d+)?%?")
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,1000})\$\$|\$(?P<inline>[^$\n]{1,300})\$|\\\[(?P<square>[^$]{1,1000}?)\\\]"
    r"|\\\((?P<round>[^$\n]{1,300}?)\\\)"
)
_END_TOKENS = re.compile(
    r"(?:\s*(?:<\|(?:im_end|endoftext|eot_id|eom_id|end_of_text|end|eos|return|endofturn|user|observation)\|>|</s>|<eos>"
    r"|<end_of_turn>|<\uff5cend\u2581of\u2581sentence\uff5c>|\[EOS\]))+\s*\Z"
)
_MATHEMATICS = re.compile(r"\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+(?:\s*\{[^{}]*\})?", re.DOTALL)
_POINTS_BACK = re.compile(r"\babove\b|\bbox(?:ed)?\b", re.IGNORECASE)
_HEADING = re.compile(r"[A-Za-z]{2,}")
_UNDERLINE = re.compile(r"^(?:[-=_*]{3,}|```\w*)[^\S\n]*\n\s*")
_BULLET = re.compile(r"^(?:[#>]+\s*|[-*•]\s+)")
_WORD = re.compile(r"[A-Za-z]{2,}")


class Extraction(Parameters):
    """The parameters that every verifier with an extracted answer has."""

    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description=(
            "where an answer may stand; the first place that holds any text wins: boxed, the last balanced \\boxed{}, "
            "unless an answer tag or line follows it; answer_tag, the last <answer>...</answer>; answer_line, the last "
            "line that starts with 'Answer:' or '####', or the text below such a heading; statement, the text after "
            "'the answer is' at the very end; whole, the final part if it is one short line; final_part, the text "
            "after the thinking; last_number, the last number in the final part; anywhere, the last formula or number "
            "in the final part, as evaluations of free text read it"
        ),
    )
    think_tag: str = Field(default="think", pattern=r"^[A-Za-z][\w-]*$", description="the tag around the thinking")
    answer_tag: str = Field(default="answer", pattern=r"^[A-Za-z][\w-]*$", description="the tag that answer_tag reads")


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """The answer of a completion, or the reason why there is no answer.

    answer: the text at the accepted place, or None. reason: the name of the place, or why `answer` is None. rule: the
    anti-hacking rule that refused the answer, or "". box_count: how many different boxes are joined in `answer`.
    end: where the last box ends. named: the joined boxes with their names ("x = 1, y = 2"), or "". parts: the boxes of
    the parts (a), (b), ... of a question, in order; `answer` is the last of them.
    """

    answer: str | None
    reason: str
    rule: str = ""
    box_count: int = 1
    end: int = 0
    named: str = ""
    parts: tuple[str, ...] = ()


def final_part(completion: str, think_tag: str = "think", prompt: str = "") -> str | None:
    """The text after the last closing think tag, or None if the thinking never ends.

    Without think tags the final part is the whole completion. If the prompt ends with the opening tag, the completion
    starts inside the thinking. The case of tags is ignored. Tokens that end a turn (<|im_end|>) are left out.
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
    if not tail[-20:].rstrip().endswith((">", "]")):
        return tail
    return tail[:-MAX_STATED_CHARS] + _END_TOKENS.sub("", tail[-MAX_STATED_CHARS:])


@lru_cache(maxsize=64)
def _tags(tag: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(rf"<\s?{tag}\s?>", re.IGNORECASE), re.compile(rf"<\s?/\s?{tag}\s?>", re.IGNORECASE)


def find(
    completion: str, extraction: Extraction, prompt: str = "", *, allow_hidden: bool = False, verbatim: bool = False
) -> ExtractedAnswer:
    """Extract the answer of `completion` by the rules of `extraction`.

    allow_hidden: allow the characters that `hacking.has_hidden_characters` detects. verbatim: keep the words "The
    answer is" inside a marked place, for verifiers that compare texts.
    """
    text = final_part(completion, extraction.think_tag, prompt)
    if text is None:
        return ExtractedAnswer(
            None, f"the thinking never ends: no </{extraction.think_tag}>", rule=hacking.UNCLOSED_TAG
        )
    is_reasoned = len(completion) - len(text) >= hacking.MIN_REASONING_CHARS
    text_without_echo = hacking.remove_echo(text, prompt, is_reasoned=is_reasoned) if prompt else text
    for place in extraction.accept:
        extracted = read_place(text_without_echo, place, extraction)
        if extracted is None:
            continue
        if extracted.answer is None:
            return extracted
        if place == "boxed":
            extracted = _read_after_box(text_without_echo, extraction, extracted.end) or extracted
        elif not verbatim:
            extracted = replace(extracted, answer=_without_label(extracted.answer or "", extracted.reason))
        if not extracted.answer:
            return ExtractedAnswer(None, f"the {extracted.reason} answer is empty", rule=hacking.EMPTY_ANSWER)
        if not allow_hidden and hacking.has_hidden_characters(extracted.answer):
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
    if place == "anywhere":
        return _read_anywhere(text)
    numbers = [m.group() for m in _NUMBER.finditer(text) if m.group()]
    return ExtractedAnswer(numbers[-1], "last number") if numbers else None


def answer_lines(text: str, start: int = 0) -> list[str]:
    """The text after "Answer:" or "####" of each line that starts with it, without emphasis marks; no empty texts.

    A line with nothing after the label is a heading, and the answer stands below it. start: where to start reading.
    """
    matches = labels.lines(text, start)
    if text.find("####", start) >= 0:
        labelled, text_end = {match.start() for match in matches}, len(text.rstrip())
        hashes = (
            match
            for match in _HASHES.finditer(text, start)
            if match.start() not in labelled and not (_HEADING.match(match["answer"]) and match.end() < text_end)
        )
        matches = sorted([*matches, *hashes], key=lambda match: match.start())
    answers = (labels.strip_marks(match["answer"].strip("# ")) or _below(text, match.end()) for match in matches)
    return [answer for answer in answers if answer]


def _below(text: str, end: int) -> str:
    """The line, list or displayed formula below a heading that ends at `end`; "" for a sentence with text after it."""
    rest = _UNDERLINE.sub("", text[end : end + 2 * MAX_BLOCK_CHARS].strip(), count=1)
    line = _first_block(rest)
    if not line or labels.lines(line):
        return ""
    if len(line) < len(rest) and labels.without_closing(rest).rstrip() != line and not is_brief(line):
        return ""
    return labels.strip_marks(line if "\n" in line else _BULLET.sub("", line, count=1))


def _without_label(answer: str, place: str) -> str:
    """`answer` without "The answer is"; of a solution inside an answer tag, the answer that it marks or states."""
    if place == "answer tag":
        if lines := answer_lines(answer):
            answer = lines[-1]
        elif "\n" in answer and (stated := _read_statement(answer)) is not None and stated.answer:
            answer = stated.answer
    return labels.without_label(answer)


def _first_block(text: str) -> str:
    for opening, closing in (("$$", "$$"), (r"\[", r"\]")):
        if text.startswith(opening):
            end = text.find(closing, 2)
            return text[: end + 2] if 0 <= end <= MAX_BLOCK_CHARS else ""
    lines = text.splitlines() or [""]
    items = list(takewhile(_BULLET.match, lines))
    return "\n".join(items) if len(items) > 1 else lines[0].strip()


def is_brief(text: str) -> bool:
    """Whether `text` is an answer and no sentence: it has at most two words outside of its mathematics."""
    return len(text) <= MAX_STATED_CHARS and len(_WORD.findall(_MATHEMATICS.sub("", text))) <= MAX_BRIEF_WORDS


def _read_boxes(text: str) -> ExtractedAnswer | None:
    near, is_open = boxes.find_boxes(text)
    if is_open:
        return ExtractedAnswer(None, r"the last \boxed{ is never closed", rule=hacking.UNCLOSED_TAG)
    if not near:
        return None
    if len(near) == 1 and near[0].content:
        return ExtractedAnswer(near[0].content, "boxed", end=near[0].end)
    joined = [near[-1]]
    parts = [near[-1]]
    for box in reversed(near[:-1]):
        gap = text[box.end : joined[0].start]
        if len(gap) <= MAX_CHARS_BETWEEN_BOXES and _BETWEEN_JOINED_BOXES.fullmatch(gap):
            joined.insert(0, box)
        elif boxes.are_consecutive_parts(box.label, parts[0].label):
            parts.insert(0, box)
        else:
            break
    different = list(dict.fromkeys(box.content for box in joined))
    answer = ", ".join(different).strip()
    if not answer:
        return ExtractedAnswer(None, "the boxed answer is empty", rule=hacking.EMPTY_ANSWER)
    names = {box.label for box in joined if not box.label.startswith("(")}
    is_named = len(joined) > 1 and "" not in names and len(names) == len(joined)
    return ExtractedAnswer(
        answer,
        "boxed",
        box_count=len(different),
        end=near[-1].end,
        named=", ".join(f"{box.label} = {box.content}" for box in joined) if is_named else "",
        parts=tuple(box.content for box in parts) if len(parts) > 1 else (),
    )


def _replaces_box(line: str) -> bool:
    """Whether an answer line after the box is an answer of its own: brief, and not "see above"."""
    return is_brief(line) and _POINTS_BACK.search(line) is None


def _read_after_box(text: str, extraction: Extraction, end: int) -> ExtractedAnswer | None:
    """The answer tag, or the brief answer line, that stands after the last box."""
    rest = text[end:]
    if len(rest) < MIN_MARKED_CHARS or ("\n" not in rest.rstrip() and "<" not in rest):
        return None
    after_box = extraction.accept[extraction.accept.index("boxed") :]
    if "answer_tag" in after_box and (tag := _read_answer_tag(text, extraction.answer_tag, end)) and tag.answer:
        return replace(tag, answer=_without_label(tag.answer, tag.reason))
    if "answer_line" in after_box and (lines := answer_lines(text, end)) and _replaces_box(lines[-1]):
        return ExtractedAnswer(labels.without_label(lines[-1]), "answer line")
    return None


def _read_answer_tag(text: str, tag: str, start: int = 0) -> ExtractedAnswer | None:
    if "<" not in text:
        return None
    opening, closing = _tags(tag)
    starts, ends = list(opening.finditer(text, start)), list(closing.finditer(text, start))
    if starts and (not ends or starts[-1].start() > ends[-1].start()):
        return ExtractedAnswer(None, f"the last <{tag}> is never closed", rule=hacking.UNCLOSED_TAG)
    before = [start for start in starts if ends and start.end() <= ends[-1].start()]
    if not before:
        return None
    answer = text[before[-1].end() : ends[-1].start()].strip()
    if answer:
        return ExtractedAnswer(answer, "answer tag")
    return ExtractedAnswer(None, "the answer tag answer is empty", rule=hacking.EMPTY_ANSWER)


def _read_statement(text: str) -> ExtractedAnswer | None:
    """The text after "the answer is" in the last line, or the last line or formula, below "the answer is"."""
    text = labels.without_closing(text.rstrip()).rstrip()
    before, _, line = text.rpartition("\n")
    if len(line) > MAX_STATED_CHARS:
        line = line[-MAX_STATED_CHARS:]
    matches = labels.statements(line)
    if not matches:
        return _read_below_statement(text, before, line)
    ends = [match.start() for match in matches[1:]]
    stated = {line[match.end() : end].strip(" .$*") for match, end in zip(matches, [*ends, len(line)], strict=True)}
    if len(matches) > 1 and len(stated - {""}) > 1:
        reason = "one line states several different answers"
        return ExtractedAnswer(None, reason, rule=hacking.SEVERAL_ANSWERS)
    answer = line[matches[-1].end() :].strip(" \t\r*_")
    return ExtractedAnswer(answer, "statement") if answer else None


def _read_below_statement(text: str, before: str, line: str) -> ExtractedAnswer | None:
    block = line.strip()
    for opening, closing in (("$$", "$$"), (r"\[", r"\]")):
        if line.rstrip(" .").endswith(closing):
            start = text.rfind(opening, max(0, len(text) - MAX_BLOCK_CHARS), text.rfind(closing))
            if start < 0:
                return None
            before, block = text[:start], text[start:].strip()
    introduction = before.rstrip().rpartition("\n")[2][-MAX_STATED_CHARS:]
    return ExtractedAnswer(block, "statement") if block and labels.ends_with_statement(introduction) else None


def _read_anywhere(text: str) -> ExtractedAnswer | None:
    """The formula or the number that ends last in `text`."""
    formulas = list(_FORMULA.finditer(text))
    formula_end = formulas[-1].end() if formulas else 0
    numbers = [match for match in _NUMBER.finditer(text, formula_end) if match.group()]
    if numbers:
        return ExtractedAnswer(numbers[-1].group(), "anywhere")
    if formulas:
        return ExtractedAnswer(next(filter(None, formulas[-1].groups())).strip(), "anywhere")
    return None


def reference_text(reference: str) -> str:
    r"""The answer in a reference: the inside of its last \boxed{}, or the text after GSM8K's `####` or "answer is"."""
    _, mark, after = reference.rpartition("####")
    text = after if mark else reference
    contents, _ = boxes.boxed_contents(text)
    return (boxes.strip_boxes(contents[-1]) if contents else _ANSWER_IS.sub("", text, count=1)).strip()
