"""`numeric`: the answer is one number, equal to the reference or within a tolerance of it."""

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import magnitude, notation, numbers, symbolic
from vold_verifier.reading import bounds, hacking
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
        description="ignore a unit after the number (but two different known units are not equal), or refuse it",
    )


class NumericVerifier(Verifier[NumericParameters]):
    name: ClassVar[str] = "numeric"
    summary: ClassVar[str] = "one number, exactly or within a tolerance; fractions, percent, 1,000 and 1e3 are read"
    parameters: ClassVar[type[NumericParameters]] = NumericParameters
    cost: ClassVar[int] = 1

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: NumericParameters, /) -> Verdict:
        reference_answer = reference_text(item.reference)
        reference = None
        if len(reference_answer) <= numbers.MAX_CHARS:
            reference = _parse_answer(reference_answer, with_unit=True)
        if reference is None:
            raise BadReferenceError(f"the reference is not a number: {shorten(item.reference)}")
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(extracted.answer) > numbers.MAX_CHARS:
            return Verdict.wrong(
                extracted.answer, f"the answer has {len(extracted.answer):,} characters: not parsed", hacking.UNSAFE
            )
        answer = _parse_answer(extracted.answer, with_unit=parameters.units == "ignore")
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


def _parse_answer(text: str, *, with_unit: bool) -> numbers.Number | None:
    """The number that `text` gives, as a number, after an equals sign, about a number, or as a closed form."""
    latex = symbols_to_latex(text)
    number = numbers.parse(latex, with_unit=with_unit)
    if number is not None:
        return number
    latex = notation.clean(latex)
    for part in (latex, latex.rpartition("=")[2].strip()):
        number = numbers.parse(notation.clean(part), with_unit=with_unit)
        if number is not None:
            return number
    if bounds.violation(latex) is not None or magnitude.are_apart("1", latex):
        return None
    value = symbolic.constant_value(notation.normalise(latex))
    return None if value is None else numbers.Number(value, places=symbolic.DIGITS - 5, digits=symbolic.DIGITS - 5)


def _rule_of_wrong_answer(extracted: ExtractedAnswer) -> str:
    """The anti-hacking rule that an answer breaks if it is not one number, or ""."""
    assert extracted.answer is not None
    if extracted.box_count > 1:
        return hacking.SEVERAL_BOXES
    if hacking.has_look_alikes(extracted.answer):
        return hacking.LOOK_ALIKE
    return hacking.SEVERAL_ANSWERS if hacking.count_answers(extracted.answer) > 1 else ""


def _within_tolerance(answer: numbers.Number, reference: numbers.Number, parameters: NumericParameters) -> bool:
    value = numbers.converted_value(answer, reference)
    if value is None:
        return False
    relative, absolute = Fraction(str(parameters.relative_tolerance)), Fraction(str(parameters.absolute_tolerance))
    if not relative and not absolute:
        return False
    pairs = (
        [(value, reference.value)]
        if answer.percent == reference.percent
        else [(x, y) for x in answer.possible_values() for y in reference.possible_values()]
    )
    return any(abs(x - y) <= max(absolute, relative * abs(y)) for x, y in pairs)
