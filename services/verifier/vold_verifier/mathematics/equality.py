"""Compare two mathematical texts: first on an exact path for equal texts and plain numbers, then by algebra.

The exact path is faster, and gives the same result as algebra.
"""

from dataclasses import dataclass

from vold_verifier.mathematics import magnitude, notation, numbers, parsing, symbolic
from vold_verifier.reading import bounds
from vold_verifier.reading.text import shorten, symbols_to_latex
from vold_verifier.types import BadReferenceError

MAX_TEXT_CHARS = 80
"""Up to this length a reference that is no mathematics is an answer, and other texts are wrong."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison.

    rule: the anti-hacking rule that refused the answer, or "". by_algebra: the exact path did not decide.
    """

    equal: bool
    reason: str
    rule: str = ""
    by_algebra: bool = False


def compare(reference: str, answer: str, *, use_exact_path: bool = True, allow_unevaluated: bool = False) -> Comparison:
    """Compare the value of `answer` with the value of `reference`.

    Both are raw text of at most `bounds.MAX_ANSWER_CHARS`. The computation may never end: the caller limits its time.
    Raises BadReferenceError if `reference` is empty, breaks a bound, does not parse or has no value.

    use_exact_path: False compares by algebra alone. allow_unevaluated: see `symbolic.compare`.
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
            and not _unit_may_be_variables(reference_number, answer_number)
        ):
            is_equal = numbers.are_equal(reference_number, answer_number)
            return Comparison(is_equal, "equal numbers" if is_equal else "different numbers")
    if (violation := bounds.violation(answer_latex)) is not None:
        return Comparison(False, f"the answer is not parsed: {violation}", "unsafe")
    if (violation := bounds.violation(reference_latex)) is not None:
        raise BadReferenceError(f"the reference cannot be parsed safely: {violation}: {shorten(reference)}")
    if magnitude.are_apart(symbolic.value_side(reference_latex), symbolic.value_side(answer_latex)):
        return Comparison(False, "not equal: of another size", by_algebra=True)
    parsing.forget()
    try:
        comparison = symbolic.compare(reference_latex, answer_latex, allow_unevaluated=allow_unevaluated)
        return Comparison(*comparison, by_algebra=True)
    except symbolic.UnreadableError as error:
        if error.is_text and _is_short_text(reference_latex):
            return Comparison(False, "another text than the reference, which is no mathematics")
        raise BadReferenceError(f"{error}: {shorten(reference)}") from error


def _is_short_text(reference: str) -> bool:
    """Whether a reference that does not parse is an answer of its own, and no broken formula."""
    is_balanced = all(reference.count(opening) == reference.count(closing) for opening, closing in ("{}", "()"))
    return len(reference) <= MAX_TEXT_CHARS and is_balanced and "\\begin" not in reference


def _unit_may_be_variables(first: numbers.Number, second: numbers.Number) -> bool:
    """Whether the unit of one of two numbers may be a product: 5 m compared with 5, but not with 5 cm."""
    return not (first.unit and second.unit) and (first.may_be_variables or second.may_be_variables)
