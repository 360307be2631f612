"""Whether two mathematical texts mean the same: an exact fast path for numbers, then algebra.

The fast path decides what is the same text, and what is plainly two numbers; it gives the verdict that algebra would.
"""

from dataclasses import dataclass

from vold_verifier.mathematics import notation, numbers, symbolic
from vold_verifier.reading import bounds
from vold_verifier.reading.text import mathematical, shorten
from vold_verifier.types import BadReferenceError


@dataclass(frozen=True, slots=True)
class Outcome:
    """rule: the anti-hacking rule that refused the answer, or "". algebra: not told by the exact path."""

    equal: bool
    reason: str
    rule: str = ""
    algebra: bool = False


def equal(gold: str, answer: str, *, fast: bool = True) -> Outcome:
    """Whether `answer` means what `gold` means. fast: use the exact path where it applies.

    Both are raw text of at most `bounds.MAX_ANSWER_CHARS`. May compute for ever: run it where time is limited. Raises
    BadReferenceError for a `gold` that nothing can be held against.
    """
    reference, given = notation.clean(mathematical(gold)), notation.clean(mathematical(answer))
    if not reference:
        raise BadReferenceError("the reference is empty")
    if not given:
        return Outcome(False, "the answer is empty", "empty_answer")
    if fast:
        if symbolic.squash(given) == symbolic.squash(reference):
            return Outcome(True, "the same text")
        ours = numbers.parse(reference, with_unit=True)
        theirs = numbers.parse(symbolic.value_side(given), with_unit=True)
        if ours is not None and theirs is not None and not _product(ours, theirs):
            same = numbers.same(ours, theirs)
            return Outcome(same, "equal numbers" if same else "different numbers")
    if (fault := bounds.fault(given)) is not None:
        return Outcome(False, f"the answer is not parsed: {fault}", "unsafe")
    if (fault := bounds.fault(reference)) is not None:
        raise BadReferenceError(f"the reference cannot be parsed safely: {fault}: {shorten(gold)}")
    try:
        return Outcome(*symbolic.compare(reference, given), algebra=True)
    except symbolic.UnreadableError as error:
        raise BadReferenceError(f"{error}: {shorten(gold)}") from error


def _product(one: numbers.Number, other: numbers.Number) -> bool:
    """Whether a letter after one of two numbers may be a variable: 5 m beside 5, but not beside 5 cm."""
    unit = one.unit or other.unit
    return not (one.unit and other.unit) and len(unit) == 1 and unit.isalpha()
