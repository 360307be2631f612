"""Compare two mathematical texts: first on an exact path for equal texts and plain numbers, then by algebra.

The exact path is faster, and gives the same result as algebra.
"""

from dataclasses import dataclass

from vold_verifier.mathematics import notation, numbers, symbolic
from vold_verifier.reading import bounds
from vold_verifier.reading.text import shorten, symbols_to_latex
from vold_verifier.types import BadReferenceError


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison.

    rule: the anti-hacking rule that refused the answer, or "". by_algebra: the exact path did not decide.
    """

    equal: bool
    reason: str
    rule: str = ""
    by_algebra: bool = False


def compare(reference: str, answer: str, *, use_exact_path: bool = True) -> Comparison:
    """Compare the value of `answer` with the value of `reference`.

    Both are raw text of at most `bounds.MAX_ANSWER_CHARS`. The computation may never end: the caller limits its time.
    Raises BadReferenceError if `reference` is empty, breaks a bound, does not parse or has no value.

    use_exact_path: False compares by algebra alone.
    """
    if use_exact_path and answer.isdigit() and reference.isdigit() and answer.isascii() and reference.isascii():
        if answer == reference:
            return Comparison(True, "the same text")
        is_equal = int(answer) == int(reference)
        return Comparison(is_equal, "equal numbers" if is_equal else "different numbers")
    reference_latex = notation.clean(symbols_to_latex(reference))
    answer_latex = notation.clean(symbols_to_latex(answer))
    if not reference_latex:
        raise BadReferenceError("the reference is empty")
    if not answer_latex:
        return Comparison(False, "the answer is empty", "empty_answer")
    if use_exact_path:
        if symbolic.remove_spacing(answer_latex) == symbolic.remove_spacing(reference_latex):
            return Comparison(True, "the same text")
        reference_number = numbers.parse(reference_latex, with_unit=True)
        answer_number = numbers.parse(symbolic.value_side(answer_latex), with_unit=True)
        if (
            reference_number is not None
            and answer_number is not None
            and not _unit_may_be_variable(reference_number, answer_number)
        ):
            is_equal = numbers.are_equal(reference_number, answer_number)
            return Comparison(is_equal, "equal numbers" if is_equal else "different numbers")
    if (violation := bounds.violation(answer_latex)) is not None:
        return Comparison(False, f"the answer is not parsed: {violation}", "unsafe")
    if (violation := bounds.violation(reference_latex)) is not None:
        raise BadReferenceError(f"the reference cannot be parsed safely: {violation}: {shorten(reference)}")
    try:
        return Comparison(*symbolic.compare(reference_latex, answer_latex), by_algebra=True)
    except symbolic.UnreadableError as error:
        raise BadReferenceError(f"{error}: {shorten(reference)}") from error


def _unit_may_be_variable(first: numbers.Number, second: numbers.Number) -> bool:
    """Whether the unit of one of two numbers may be a variable: 5 m compared with 5, but not with 5 cm."""
    unit = first.unit or second.unit
    return not (first.unit and second.unit) and len(unit) == 1 and unit.isalpha()
