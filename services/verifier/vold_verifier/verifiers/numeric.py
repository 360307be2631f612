"""`numeric`: the answer is one number, equal to the reference or within a tolerance of it."""

from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import constants, equations, numbers, symbolic
from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import ExtractedAnswer, find, reference_text
from vold_verifier.reading.text import shorten, symbols_to_latex
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.tolerance import ToleranceParameters

LEFT_TO_COMPUTE = "an expression that is left to compute, and no number"


class NumericParameters(ToleranceParameters):
    units: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="ignore a unit after the number (but two different known units are not equal), or refuse it",
    )


class NumericVerifier(Verifier[NumericParameters]):
    name: ClassVar[str] = "numeric"
    summary: ClassVar[str] = (
        "one number, exactly or within a tolerance; fractions, percent, 1,000, 1e3 and irrational closed forms are read"
    )
    parameters: ClassVar[type[NumericParameters]] = NumericParameters
    cost: ClassVar[int] = 1

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: NumericParameters, /) -> Verdict:
        reference_answer = reference_text(item.reference)
        reference = None
        if len(reference_answer) <= numbers.MAX_CHARS:
            reference = constants.parse(reference_answer)
        if reference is None:
            raise BadReferenceError(f"the reference is not a number: {shorten(item.reference)}")
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(extracted.answer) > numbers.MAX_CHARS:
            return Verdict.wrong(
                extracted.answer, f"the answer has {len(extracted.answer):,} characters: not parsed", hacking.UNSAFE
            )
        with_unit, text = parameters.units == "ignore", symbols_to_latex(extracted.answer)
        answer = numbers.parse(text, with_unit=with_unit)
        if answer is None and "=" in text and equations.is_left_to_solve(text, item.prompt):
            return Verdict.wrong(extracted.answer, equations.LEFT_TO_SOLVE)
        answer = answer or numbers.parse(text.rpartition("=")[2], with_unit=with_unit)
        if answer is None and (closed_form := constants.parse(extracted.answer, with_unit=with_unit)):
            # A problem that is read off a picture (5+7-4) stands in no prompt that it could be an echo of.
            if constants.is_left_to_compute(extracted.answer, closed_form):
                return Verdict.wrong(extracted.answer, LEFT_TO_COMPUTE, hacking.UNEVALUATED)
            if item.prompt and hacking.is_echo(extracted.answer, reference_answer, item.prompt):
                return Verdict.wrong(extracted.answer, "copied from the prompt, not worked out", hacking.ECHOED_PROMPT)
            answer = closed_form
        if answer is None:
            return Verdict.wrong(
                extracted.answer,
                f"the answer is not a number: {shorten(extracted.answer)}",
                _rule_of_wrong_answer(extracted),
            )
        if numbers.are_equal(reference, answer):
            return Verdict.right(extracted.answer, "equal numbers")
        if parameters.admits(answer, reference):
            return Verdict.right(extracted.answer, "equal within the tolerance")
        return Verdict.wrong(extracted.answer, "different numbers")


def _rule_of_wrong_answer(extracted: ExtractedAnswer) -> str:
    """The anti-hacking rule that an answer breaks if it is not one number, or ""."""
    assert extracted.answer is not None
    if extracted.box_count > 1:
        return hacking.SEVERAL_BOXES
    if hacking.has_look_alikes(extracted.answer):
        return hacking.LOOK_ALIKE
    return hacking.SEVERAL_ANSWERS if hacking.count_answers(extracted.answer) > 1 else ""
