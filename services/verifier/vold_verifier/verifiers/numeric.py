"""`numeric`: the answer is one number, held against the reference within a tolerance."""

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import numbers, units
from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Found, find, reference_text
from vold_verifier.reading.text import mathematical, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class NumericParameters(Extraction):
    relative_tolerance: float = Field(
        default=0.0, ge=0, lt=1, description="largest |answer - reference| / |reference|; 0 asks for equality"
    )
    absolute_tolerance: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="largest |answer - reference|"
    )
    units: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="words after the number: ignore them (but two different units are not equal), or refuse them",
    )


class NumericVerifier(Verifier[NumericParameters]):
    name: ClassVar[str] = "numeric"
    summary: ClassVar[str] = "one number, exactly or within a tolerance; fractions, percent, 1,000 and 1e3 are read"
    parameters: ClassVar[type[NumericParameters]] = NumericParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: NumericParameters, /) -> Verdict:
        gold = reference_text(item.reference)
        reference = numbers.parse(mathematical(gold), with_unit=True) if len(gold) <= numbers.MAX_CHARS else None
        if reference is None:
            raise BadReferenceError(f"the reference is not a number: {shorten(item.reference)}")
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        if len(found.answer) > numbers.MAX_CHARS:
            return Verdict.wrong(
                found.answer, f"the answer has {len(found.answer):,} characters: not read", hacking.UNSAFE
            )
        text = mathematical(found.answer)
        answer = numbers.parse(text, with_unit=parameters.units == "ignore")
        if answer is None and "=" in text:
            answer = numbers.parse(text.rpartition("=")[2], with_unit=parameters.units == "ignore")
        if answer is None:
            return Verdict.wrong(found.answer, f"the answer is not a number: {shorten(found.answer)}", _rule(found))
        if numbers.same(reference, answer):
            return Verdict.right(found.answer, "equal numbers")
        if _within(answer, reference, parameters):
            return Verdict.right(found.answer, "equal within the tolerance")
        return Verdict.wrong(found.answer, "different numbers")


def _rule(found: Found) -> str:
    """What to call an answer that is not one number, or ""."""
    assert found.answer is not None
    if found.boxes > 1:
        return hacking.SEVERAL_BOXES
    if hacking.look_alike(found.answer):
        return hacking.LOOK_ALIKE
    return hacking.SEVERAL_ANSWERS if hacking.parts(found.answer) > 1 else ""


def _within(answer: numbers.Number, reference: numbers.Number, parameters: NumericParameters) -> bool:
    scale = units.factor(answer.unit, reference.unit) if answer.unit and reference.unit else Fraction(1)
    if scale is None:
        return False
    relative, absolute = Fraction(str(parameters.relative_tolerance)), Fraction(str(parameters.absolute_tolerance))
    if not relative and not absolute:
        return False
    pairs = (
        [(answer.value * scale, reference.value)]
        if answer.percent == reference.percent
        else [(x, y) for x in answer.readings() for y in reference.readings()]
    )
    return any(abs(x - y) <= max(absolute, relative * abs(y)) for x, y in pairs)
