"""Answers that are words or clock-like figures: "no solution", Tuesday, 3:30 p.m., the ratio 3:4."""

import re
from fractions import Fraction

from vold_verifier.mathematics import numbers

_TEXT_ONLY = re.compile(r"^\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}\\]*)\}$")
_WORDS = frozenset({"yes", "no", "odd", "even", "true", "none", "dne"})
_SYNONYMS = (
    frozenset(
        {"no solution", "no solutions", "there is no solution", "there are no solutions", "empty set", "the empty set"}
    ),
    frozenset({"does not exist", "dne", "doesn't exist"}),
    frozenset({"all real numbers", "all reals", "the real numbers", "every real number"}),
    frozenset({"infinitely many", "infinitely many solutions"}),
)
_SYMBOLS = {r"\emptyset": "no solution", r"\mathbb{R}": "all real numbers", r"(-\infty,\infty)": "all real numbers"}
_TEXT = re.compile(r"^\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}$")
_COLON = re.compile(r"^(?P<parts>\d+(?:\.\d+)?(?:\s*(?::|\\colon|\bto\b)\s*\d+(?:\.\d+)?)+)\s*(?P<half>.*)$")
_HALF = re.compile(r"^\\?,?\s*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?([ap])\.?\s*m\.?\s*\}?$", re.IGNORECASE)
_PART = re.compile(r"\s*(?::|\\colon|\bto\b)\s*")


def as_words(text: str) -> str | None:
    r"""`text` in lower case where it is words and not mathematics: \text{Odd}, yes, Tuesday; else None."""
    wrapped = _TEXT_ONLY.match(text)
    inner = " ".join((wrapped.group(1) if wrapped else text).split()).rstrip(".")
    letters = inner.replace(" ", "").replace("-", "").replace("'", "")
    if not letters.isalpha():
        return None
    if len(letters) >= 4 or inner.lower() in _WORDS or (wrapped and len(letters) >= 2):
        return inner.lower()
    return None


def same_words(gold: str, answer: str) -> bool | None:
    """Whether `answer` says what `gold` says; None where the gold is not words, nor a symbol that words stand for."""
    gold_words = as_words(gold) or _symbol(gold)
    if gold_words is None:
        return None
    answer_words = as_words(answer) or _symbol(answer) or " ".join(answer.lower().split())
    if answer_words == gold_words or any({gold_words, answer_words} <= group for group in _SYNONYMS):
        return True
    # A symbol may also be another spelling of the same set, which is for algebra to say.
    return False if (as_words(gold) is not None and as_words(answer) is not None) or _symbol(gold) is None else None


def _symbol(text: str) -> str | None:
    return _SYMBOLS.get("".join(text.split()))


def same_figures(gold: str, answer: str) -> bool | None:
    """Whether two clock times or ratios are the same; None where the gold is neither.

    With two digits below 60 after the colon it may be a time, and then 3:30 is not 1/10. A ratio equals its multiples
    and, of two numbers, its quotient.
    """
    ours, theirs = _read(gold), _read(answer)
    if ours is None:
        if theirs is None or ":" not in answer:
            return None
        number = numbers.parse(gold)
        return number is not None and number.value.denominator > 1 and _quotient(theirs[0], gold, answer)
    parts, half = ours
    if theirs is None:
        return _quotient(parts, answer, gold)
    others, other_half = theirs
    if half and other_half and half != other_half:
        return False
    if parts == others:
        return True
    if _clock(gold) or _clock(answer) or half or other_half or len(parts) != len(others) or not all(parts + others):
        return False
    return all(x * others[0] == y * parts[0] for x, y in zip(parts, others, strict=True))


def _quotient(parts: list[Fraction], other: str, figures: str) -> bool:
    number = numbers.parse(other, with_unit=True)
    if number is None or len(parts) != 2 or not parts[1] or number.percent:
        return False
    if _clock(figures) and not re.search(r"/|\\[dt]?frac", other):
        return False
    return number.value == parts[0] / parts[1]


def _clock(text: str) -> bool:
    return re.match(r"^\d{1,2}\s*(?::|\\colon)\s*[0-5]\d(?!\d)", text) is not None


def _read(text: str) -> tuple[list[Fraction], str] | None:
    wrapped = _TEXT.match(text)
    match = _COLON.match(wrapped[1].strip() if wrapped else text)
    if match is None:
        return None
    half = _HALF.match(match["half"]) if match["half"] else None
    if match["half"] and half is None:
        return None
    return [Fraction(part) for part in _PART.split(match["parts"])], half[1].lower() if half else ""
