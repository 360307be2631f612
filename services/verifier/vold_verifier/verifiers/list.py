"""`list`: the answer is several items, in order or in any order, compared as texts, numbers or mathematics."""

import json
import re
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import notation, numbers, symbolic
from vold_verifier.mathematics.equality import compare
from vold_verifier.reading import bounds, hacking
from vold_verifier.reading.extraction import find, reference_text
from vold_verifier.reading.text import normalise, shorten, symbols_to_latex
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.tolerance import ToleranceParameters

MAX_ITEMS = 200
MAX_MATHEMATICAL_ITEMS = 30
MAX_ANSWER_CHARS = 20_000
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)](?!\d))\s+")
_AND = re.compile(r",?\s+and\s+")
_SET = re.compile(r"^\\\{(.*)\\\}$", re.DOTALL)
_QUOTES = "\"'`“”"


class ListParameters(ToleranceParameters):
    items: Literal["text", "number", "math"] = Field(
        default="text", description="compare the items as texts, exact numbers, or mathematics"
    )
    ordered: bool = Field(default=False, description="the order of the items matters")
    duplicates: bool = Field(default=True, description="an item that the reference has twice must be named twice")
    separator: str = Field(
        default="",
        max_length=5,
        description="the text between items; by default line breaks, else semicolons, else commas",
    )
    ignore_case: bool = Field(default=True, description="texts: treat upper and lower case as equal")
    partial: bool = Field(
        default=False,
        description="reward the F1 of the items (ordered: the share of positions that are right) instead of 0 or 1",
    )


class ListVerifier(Verifier[ListParameters]):
    name: ClassVar[str] = "list"
    summary: ClassVar[str] = "several items, in order or in any order, as texts, numbers or mathematics"
    parameters: ClassVar[type[ListParameters]] = ListParameters
    cost: ClassVar[int] = 4

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: ListParameters, /) -> Verdict:
        reference = parse_items(reference_text(item.reference), parameters)
        limit = MAX_MATHEMATICAL_ITEMS if parameters.items == "math" else MAX_ITEMS
        if not reference or len(reference) > limit:
            raise BadReferenceError(
                f"the reference has {len(reference)} items, 1 to {limit} wanted: {shorten(item.reference)}"
            )
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(extracted.answer) > MAX_ANSWER_CHARS:
            reason = f"the answer has {len(extracted.answer):,} characters, over {MAX_ANSWER_CHARS:,}"
            return Verdict.wrong(extracted.answer, reason, hacking.UNSAFE)
        answer = parse_items(extracted.answer, parameters)
        if len(answer) > max(2 * len(reference) + 5, 10):
            reason = f"{len(answer)} items, but the reference has {len(reference)}"
            return Verdict.wrong(extracted.answer, reason, hacking.SEVERAL_ANSWERS)
        are_equal = _item_comparison(parameters)
        if parameters.ordered:
            matches = sum(map(are_equal, reference, answer))
            share = matches / max(len(reference), len(answer))
        else:
            if not parameters.duplicates:
                reference, answer = _distinct(reference, are_equal), _distinct(answer, are_equal)
            matches = _count_matches(reference, answer, are_equal)
            share = 2 * matches / (len(reference) + len(answer))
        if matches == len(reference) == len(answer):
            return Verdict.right(extracted.answer, "the same items")
        rule = hacking.SEVERAL_ANSWERS if matches == len(reference) < len(answer) else ""
        reason = f"{matches} of {len(reference)} items right, {len(answer)} in the answer"
        return Verdict(share if parameters.partial else 0.0, False, extracted.answer, reason, rule)


def parse_items(text: str, parameters: ListParameters) -> list[str]:
    """The items of `text`: a JSON array, a set in braces, lines (without bullets), or the texts between separators."""
    text = normalise(text).strip().strip("$").strip()
    if text.startswith("["):
        try:
            array = json.loads(text)
        except (ValueError, RecursionError):
            array = None
        if isinstance(array, list):
            return [value if isinstance(value, str) else json.dumps(value) for value in array]
    if match := _SET.match(text):
        text = match[1]
    elif text[:1] + text[-1:] in ("[]", "()", "{}") and notation.is_enclosed(text):
        text = text[1:-1]
    if parameters.separator:
        parts = text.split(parameters.separator)
    elif "\n" in text:
        parts = [_BULLET.sub("", line) for line in text.splitlines()]
    elif ";" in text:
        parts = text.split(";")
    else:
        parts = notation.split(_AND.sub(", ", text))
    return [item for part in parts if (item := part.strip().strip(_QUOTES).strip())]


def _item_comparison(parameters: ListParameters) -> Callable[[str, str], bool]:
    if parameters.items == "number":
        return lambda reference, answer: _same_number(reference, answer, parameters)
    if parameters.items == "math":
        return lambda reference, answer: (
            len(answer) <= bounds.MAX_ANSWER_CHARS
            and (compare(reference, answer).equal or parameters.admits_text(answer, reference))
        )
    if parameters.ignore_case:
        return lambda reference, answer: " ".join(reference.casefold().split()) == " ".join(answer.casefold().split())
    return lambda reference, answer: " ".join(reference.split()) == " ".join(answer.split())


def _same_number(reference: str, answer: str, parameters: ListParameters) -> bool:
    reference_number = numbers.parse(symbols_to_latex(reference), with_unit=True)
    if reference_number is None:
        raise BadReferenceError(f"an item of the reference is not a number: {shorten(reference)}")
    answer_number = numbers.parse(symbols_to_latex(answer), with_unit=True)
    if answer_number is None:
        return False
    return numbers.are_equal(reference_number, answer_number) or parameters.admits(answer_number, reference_number)


def _count_matches(reference: list[str], answer: list[str], are_equal: Callable[[str, str], bool]) -> int:
    """How many items of `reference` match an item of `answer`, each item of `answer` at most once."""
    unmatched = list(answer)
    for reference_item in reference:
        positions = (n for n, answer_item in enumerate(unmatched) if are_equal(reference_item, answer_item))
        if (position := next(positions, None)) is not None:
            del unmatched[position]
    return len(answer) - len(unmatched)


def _distinct(items: list[str], are_equal: Callable[[str, str], bool]) -> list[str]:
    distinct: list[str] = []
    for item in items:
        if not any(are_equal(other, item) for other in distinct):
            distinct.append(item)
    return distinct
