"""`list`: the answer is several items; in order or in any, compared as texts, numbers or mathematics."""

import json
import re
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import notation, numbers, symbolic, tuples
from vold_verifier.mathematics.equality import equal
from vold_verifier.reading import bounds, hacking
from vold_verifier.reading.extraction import Extraction, find, reference_text
from vold_verifier.reading.text import mathematical, plain, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

MAX_ITEMS = 200
MAX_MATHEMATICAL_ITEMS = 30
MAX_ANSWER_CHARS = 20_000
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)](?!\d))\s+")
_AND = re.compile(r",?\s+and\s+")
_SET = re.compile(r"^\\\{(.*)\\\}$", re.DOTALL)
_QUOTES = "\"'`“”"


class ListParameters(Extraction):
    items: Literal["text", "number", "math"] = Field(
        default="text", description="what the items are compared as: texts, exact numbers, or mathematics"
    )
    ordered: bool = Field(default=False, description="the order of the items matters")
    duplicates: bool = Field(default=True, description="an item that comes twice has to be named twice")
    separator: str = Field(
        default="",
        max_length=5,
        description="what stands between items; by default lines, else semicolons, else commas",
    )
    ignore_case: bool = Field(default=True, description="texts: treat upper and lower case as equal")
    partial: bool = Field(
        default=False,
        description="reward the F1 of the items (ordered: the share of places that are right) instead of 0 or 1",
    )


class ListVerifier(Verifier[ListParameters]):
    name: ClassVar[str] = "list"
    summary: ClassVar[str] = "several items, in order or in any, as texts, numbers or mathematics"
    parameters: ClassVar[type[ListParameters]] = ListParameters
    cost: ClassVar[int] = 4

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: ListParameters, /) -> Verdict:
        gold = read(reference_text(item.reference), parameters)
        limit = MAX_MATHEMATICAL_ITEMS if parameters.items == "math" else MAX_ITEMS
        if not gold or len(gold) > limit:
            raise BadReferenceError(
                f"the reference has {len(gold)} items, 1 to {limit} wanted: {shorten(item.reference)}"
            )
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        if len(found.answer) > MAX_ANSWER_CHARS:
            reason = f"the answer has {len(found.answer):,} characters, over {MAX_ANSWER_CHARS:,}"
            return Verdict.wrong(found.answer, reason, hacking.UNSAFE)
        answer = read(found.answer, parameters)
        if len(answer) > max(2 * len(gold) + 5, 10):
            reason = f"{len(answer)} items where {len(gold)} are wanted"
            return Verdict.wrong(found.answer, reason, hacking.SEVERAL_ANSWERS)
        same = _comparison(parameters)
        if parameters.ordered:
            hits = sum(same(one, other) for one, other in zip(gold, answer, strict=False))
            share = hits / max(len(gold), len(answer))
        else:
            if not parameters.duplicates:
                gold, answer = _distinct(gold, same), _distinct(answer, same)
            hits = _matched(gold, answer, same)
            share = 2 * hits / (len(gold) + len(answer))
        if hits == len(gold) == len(answer):
            return Verdict.right(found.answer, "the same items")
        rule = hacking.SEVERAL_ANSWERS if hits == len(gold) < len(answer) else ""
        reason = f"{hits} of {len(gold)} items right, {len(answer)} given"
        return Verdict(share if parameters.partial else 0.0, False, found.answer, reason, rule)


def read(text: str, parameters: ListParameters) -> list[str]:
    """The items of `text`: a JSON array, a set in braces, lines (bullets are dropped), or what separators part."""
    text = plain(text).strip().strip("$").strip()
    if text.startswith("["):
        try:
            array = json.loads(text)
        except (ValueError, RecursionError):
            array = None
        if isinstance(array, list):
            return [value if isinstance(value, str) else json.dumps(value) for value in array]
    if match := _SET.match(text):
        text = match[1]
    elif text[:1] + text[-1:] in ("[]", "()", "{}") and tuples.enclosed(text):
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


def _comparison(parameters: ListParameters) -> Callable[[str, str], bool]:
    if parameters.items == "number":
        return _same_number
    if parameters.items == "math":
        return lambda gold, answer: len(answer) <= bounds.MAX_ANSWER_CHARS and equal(gold, answer).equal
    if parameters.ignore_case:
        return lambda gold, answer: " ".join(gold.casefold().split()) == " ".join(answer.casefold().split())
    return lambda gold, answer: " ".join(gold.split()) == " ".join(answer.split())


def _same_number(gold: str, answer: str) -> bool:
    one = numbers.parse(mathematical(gold), with_unit=True)
    if one is None:
        raise BadReferenceError(f"an item of the reference is not a number: {shorten(gold)}")
    other = numbers.parse(mathematical(answer), with_unit=True)
    return other is not None and numbers.same(one, other)


def _matched(gold: list[str], answer: list[str], same: Callable[[str, str], bool]) -> int:
    """How many items of `gold` have a partner of their own in `answer`."""
    left = list(answer)
    for wanted in gold:
        partner = next((position for position, given in enumerate(left) if same(wanted, given)), None)
        if partner is not None:
            del left[partner]
    return len(answer) - len(left)


def _distinct(items: list[str], same: Callable[[str, str], bool]) -> list[str]:
    kept: list[str] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return kept
