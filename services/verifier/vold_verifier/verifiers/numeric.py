"""`numeric`: the answer is one number, equal to the reference or within a tolerance of it."""

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import numbers, units
from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import ExtractedAnswer, Extraction, find, reference_text
from vold_verifier.reading.text import shorten, symbols_to_latex
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class NumericParameters(Extraction):
    relative_tolerance: float = Field(
        default=0.0, ge=0, lt=1, description="largest |answer - reference| / |reference|; 0 for equality"
    )
    absolute_tolerance: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="largest |answer - reference|"
    )
    units: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="ignore words after the number (but two different known units are not equal), or refuse them",
    )


class NumericVerifier(Verifier[NumericParameters]):
    name: ClassVar[str] = "numeric"
    summary: ClassVar[str] = "one number, exactly or within a tolerance; fractions, percent, 1,000 and 1e3 are read"
    parameters: ClassVar[type[NumericParameters]] = NumericParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: NumericParameters, /) -> Verdict:
        reference_answer = reference_text(item.reference)
        reference = None
        if len(reference_answer) <= numbers.MAX_CHARS:
            reference = numbers.parse(symbols_to_latex(reference_answer), with_unit=True)
        if reference is None:
            raise BadReferenceError(f"the reference is not a number: {shorten(item.reference)}")
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(extracted.answer) > numbers.MAX_CHARS:
            return Verdict.wrong(
                extracted.answer, f"the answer has {len(extracted.answer):,} characters: not parsed", hacking.UNSAFE
            )
        text = symbols_to_latex(extracted.answer)
        answer = numbers.parse(text, with_unit=parameters.units == "ignore")
        if answer is None and "=" in text:
            answer = numbers.parse(text.rpartition("=")[2], with_unit=parameters.units == "ignore")
        if answer is None:
            return Verdict.wrong(
                extracted.answer,
                f"the answer is not a number: {shorten(extracted.answer)}",
                _rule_of_wrong_answer(extracted),
            )
        if numbers.are_equal(reference, answer):
            return Verdict.right(extracted.answer, "equal numbers")
        if _within_tolerance(answer, reference, parameters):
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


def _within_tolerance(answer: numbers.Number, reference: numbers.Number, parameters: NumericParameters) -> bool:
    scale = units.conversion_factor(answer.unit, reference.unit) if answer.unit and reference.unit else Fraction(1)
    if scale is None:
        return False
    relative, absolute = Fraction(str(parameters.relative_tolerance)), Fraction(str(parameters.absolute_tolerance))
    if not relative and not absolute:
        return False
    pairs = (
        [(answer.value * scale, reference.value)]
        if answer.percent == reference.percent
        else [(x, y) for x in answer.possible_values() for y in reference.possible_values()]
    )
    return any(abs(x - y) <= max(absolute, relative * abs(y)) for x, y in pairs)
