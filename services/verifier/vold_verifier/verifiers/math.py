"""`math`: LaTeX and plain mathematical answers, by an exact fast path and then by math-verify.

The order: bounds, the same string, two exact numbers, and only then parsing. math-verify's own time limits are off:
they need SIGALRM in the main thread and turn a slow answer into a wrong one; the pool's limits hold instead.
"""

from typing import ClassVar

from vold_verifier import bounds, numbers, symbolic
from vold_verifier.extraction import Extraction, find, reference_text
from vold_verifier.text import mathematical, shorten
from vold_verifier.verifiers.base import BadReferenceError, Item, Verdict, Verifier


class MathVerifier(Verifier[Extraction]):
    name: ClassVar[str] = "math"
    summary: ClassVar[str] = "mathematical equality: numbers, expressions, sets, intervals, matrices, equations"
    parameters: ClassVar[type[Extraction]] = Extraction

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: Extraction, /) -> Verdict:
        reference = reference_text(item.reference)
        if len(reference) > bounds.MAX_ANSWER_CHARS:
            raise BadReferenceError(
                f"the reference has {len(reference):,} characters, over {bounds.MAX_ANSWER_CHARS:,}"
            )
        gold = symbolic.clean(mathematical(reference))
        if not gold:
            raise BadReferenceError("the reference is empty")
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason)
        if len(found.answer) > bounds.MAX_ANSWER_CHARS:
            return Verdict.wrong(
                found.answer[: bounds.MAX_ANSWER_CHARS], f"the answer has {len(found.answer):,} characters: not parsed"
            )
        answer = symbolic.clean(mathematical(found.answer))
        if not answer:
            return Verdict.wrong(found.answer, "the answer is empty")
        if symbolic.squash(answer) == symbolic.squash(gold):
            return Verdict.right(found.answer, "the same text")
        gold_number = numbers.parse(gold, with_unit=True)
        answer_number = numbers.parse(symbolic.value_side(answer), with_unit=True)
        if gold_number is not None and answer_number is not None and not _product(gold_number, answer_number):
            if numbers.same(gold_number, answer_number):
                return Verdict.right(found.answer, "equal numbers")
            return Verdict.wrong(found.answer, "different numbers")
        if found.reason == "whole" and symbolic.is_prose(answer) and not symbolic.as_words(gold):
            return Verdict.wrong(None, "no marked answer: the text is a sentence")
        if (fault := bounds.fault(answer)) is not None:
            return Verdict.wrong(found.answer, f"the answer is not parsed: {fault}")
        if (fault := bounds.fault(gold)) is not None:
            raise BadReferenceError(f"the reference cannot be parsed safely: {fault}: {shorten(item.reference)}")
        try:
            equal, reason = symbolic.compare(gold, answer)
        except symbolic.UnreadableError as error:
            raise BadReferenceError(f"{error}: {shorten(item.reference)}") from error
        return Verdict.right(found.answer, reason) if equal else Verdict.wrong(found.answer, reason)


def _product(one: numbers.Number, other: numbers.Number) -> bool:
    """Whether a letter after one of two numbers may be a variable: 5 m beside 5, but not beside 5 cm."""
    return min(len(one.unit), len(other.unit)) == 0 and max(len(one.unit), len(other.unit)) == 1
