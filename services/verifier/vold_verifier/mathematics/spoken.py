"""Compare answers that are words, clock times or ratios: "no solution", Tuesday, 3:30 p.m., 3:4."""

import re
from fractions import Fraction

from vold_verifier.mathematics import numbers

_MIXED_CASE = re.compile(r"^[A-Za-z]*[a-z][A-Z][A-Za-z]*$")
_TEXT_ONLY = re.compile(r"^\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}\\]*)\}$")
_WORDS = frozenset({"yes", "no", "odd", "even", "true", "none", "dne"})
_SYNONYMS = (
    frozenset(
        {"no solution", "no solutions", "there is no solution", "there are no solutions", "empty set", "the empty set"}
    ),
    frozenset({"does not exist", "dne", "doesn't exist"}),
    frozenset({"all real numbers", "all reals", "the real numbers", "every real number"}),
    frozenset({"infinitely many", "infinitely many solutions"}),
    frozenset({"all integers", "the integers", "every integer", "any integer", "the set of integers"}),
    frozenset({"all rational numbers", "the rational numbers", "all rationals"}),
    frozenset({"all natural numbers", "the natural numbers", "all positive integers"}),
    frozenset({"all complex numbers", "the complex numbers"}),
)
_SYMBOLS = {
    r"\emptyset": "no solution",
    r"\varnothing": "no solution",
    r"\mathbb{R}": "all real numbers",
    r"(-\infty,\infty)": "all real numbers",
    r"\mathbb{Z}": "all integers",
    r"\mathbb{Q}": "all rational numbers",
    r"\mathbb{N}": "all natural numbers",
    r"\mathbb{C}": "all complex numbers",
}
_COMMUTATOR = re.compile(r"(?P<first>[A-Z])(?P<second>[A-Z])\s*-\s*(?P=second)(?P=first)")
_TEXT = re.compile(r"^\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}$")
_ARTICLE = re.compile(r"^(?:an?|the) (?=\w)")
_INSIDE = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}")
_BETWEEN_WORDS = re.compile(r"\s*(?:[,;、]|\\&|&)(?:\s*and(?![A-Za-z]))?\s*|(?<![A-Za-z])and(?![A-Za-z])")
_LISTED = re.compile(r"(?=.*[aeiouyAEIOUY])[A-Za-z][A-Za-z'-]{2,}(?: [A-Za-z'-]+){0,3}|[A-Z]{3,}")
"""A word or a name in a list; abc has a vowel, xyz is a product."""
_RATIO_NAMES = re.compile(r"^(?P<names>[^=]*[A-Za-z][^=]*:[^=]*)=\s*(?P<parts>[^=]*)$")
_WRITTEN_TO = re.compile(r"\s*\\(?:text|mathrm)\s*\{\s*to\s*\}\s*")
_COLON = re.compile(r"^(?P<parts>\d+(?:\.\d+)?(?:\s*(?::|\\colon|\bto\b)\s*\d+(?:\.\d+)?)+)\s*(?P<half>.*)$")
_HALF = re.compile(r"^\\?,?\s*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?([ap])\.?\s*m\.?\s*\}?$", re.IGNORECASE)
_PART = re.compile(r"\s*(?::|\\colon|\bto\b)\s*")


def as_words(text: str) -> str | None:
    r"""`text` in lower case if it consists of words, such as \text{Odd}, yes or Tuesday; None for mathematics."""
    wrapped = _TEXT_ONLY.match(text)
    inner = " ".join((wrapped.group(1) if wrapped else text).split()).rstrip(".")
    letters = inner.replace(" ", "").replace("-", "").replace("'", "")
    if not letters.isalpha() or _COMMUTATOR.fullmatch(inner) is not None:
        return None
    if len(letters) >= 4 or inner.lower() in _WORDS or (wrapped and len(letters) >= 2):
        return inner.lower()
    return None


def same_list_of_words(reference: str, answer: str) -> bool | None:
    """Whether `answer` lists the words that `reference` lists, in any order; None if that lists no words."""
    known = _list_of_words(reference)
    return None if known is None else known == _list_of_words(answer)


def _list_of_words(text: str) -> list[str] | None:
    parts = [" ".join(part.split()) for part in _BETWEEN_WORDS.split(_INSIDE.sub(r" \1 ", text).strip(" ."))]
    is_list = len(parts) > 1 and all(_LISTED.fullmatch(part) for part in parts)
    return sorted(part.casefold() for part in parts) if is_list else None


def same_words(reference: str, answer: str) -> bool | None:
    """Whether `answer` has the words of `reference`; None if `reference` is neither words nor one of `_SYMBOLS`."""
    reference_words = as_words(reference) or _words_for_symbol(reference)
    if reference_words is None:
        return None
    if _MIXED_CASE.search(reference) is not None and "\\" not in reference + answer:
        return reference == answer
    answer_words = as_words(answer) or _words_for_symbol(answer) or " ".join(answer.lower().split())
    if answer == "R" and reference_words == "all real numbers":
        return True
    if _without_article(answer_words) == _without_article(reference_words) or any(
        {reference_words, answer_words} <= group for group in _SYNONYMS
    ):
        return True
    if (joined := _joined(reference_words)) is not None and joined == _joined(answer_words):
        return True
    # The answer may be another spelling of the set that the symbol stands for: algebra decides.
    both_are_words = as_words(reference) is not None and as_words(answer) is not None
    return False if both_are_words or _words_for_symbol(reference) is None else None


def _joined(words: str) -> tuple[str, list[str]] | None:
    """("or" or "and", the names that it joins, in order); None for other words."""
    for word in ("or", "and"):
        names = words.split(f" {word} ")
        if len(names) > 1 and all(names):
            return word, sorted(names)
    return None


def _without_article(words: str) -> str:
    return _ARTICLE.sub("", words)


def _words_for_symbol(text: str) -> str | None:
    return _SYMBOLS.get("".join(text.split()))


def same_ratio_or_time(reference: str, answer: str) -> bool | None:
    """Whether two clock times or ratios are the same; None if the texts are not clock times or ratios.

    With two digits below 60 after the colon the text may be a time, and then 3:30 is not 1/10. A ratio equals its
    multiples, and a ratio of two numbers equals their quotient. The names of the parts (a:b = 3:4) may be left out, or
    stand in another order with their parts.
    """
    reference, answer = _WRITTEN_TO.sub(" to ", reference), _WRITTEN_TO.sub(" to ", answer)
    reference_names, reference = _split_names(reference)
    answer_names, answer = _split_names(answer)
    if reference_names and answer_names and reference_names != answer_names:
        return _same_ratio_of_names(reference_names, reference, answer_names, answer)
    reference_figures, answer_figures = _parse_ratio_or_time(reference), _parse_ratio_or_time(answer)
    if reference_figures is None:
        if answer_figures is None or ":" not in answer:
            return None
        number = numbers.parse(reference)
        return (
            number is not None
            and number.value.denominator > 1
            and _equals_quotient(answer_figures[0], reference, answer)
        )
    reference_parts, reference_half = reference_figures
    if answer_figures is None:
        return _equals_quotient(reference_parts, answer, reference)
    answer_parts, answer_half = answer_figures
    if reference_half and answer_half and reference_half != answer_half:
        return False
    if reference_parts == answer_parts:
        return True
    if _looks_like_time(reference) or _looks_like_time(answer) or reference_half or answer_half:
        return False
    if len(reference_parts) != len(answer_parts) or not all(reference_parts + answer_parts):
        return False
    return all(
        x * answer_parts[0] == y * reference_parts[0] for x, y in zip(reference_parts, answer_parts, strict=True)
    )


def _split_names(text: str) -> tuple[tuple[str, ...], str]:
    """(the names of the parts, the ratio); no names if there are none."""
    if ":" not in text or "=" not in text or (match := _RATIO_NAMES.match(text)) is None:
        return (), text
    return tuple("".join(name.split()) for name in _PART.split(match["names"])), match["parts"].strip()


def _same_ratio_of_names(names: tuple[str, ...], ratio: str, answer_names: tuple[str, ...], answer: str) -> bool:
    parts, answer_parts = _PART.split(ratio), _PART.split(answer)
    if sorted(names) != sorted(answer_names) or len(set(names)) != len(names):
        return False
    if len(parts) != len(names) or len(answer_parts) != len(names):
        return False
    reordered = ":".join(answer_parts[answer_names.index(name)] for name in names)
    return same_ratio_or_time(":".join(parts), reordered) is True


def _equals_quotient(parts: list[Fraction], number_text: str, ratio_text: str) -> bool:
    number = numbers.parse(number_text, with_unit=True)
    if number is None or len(parts) != 2 or not parts[1] or number.percent:
        return False
    if _looks_like_time(ratio_text) and not re.search(r"/|\\[dt]?frac", number_text):
        return False
    return number.value == parts[0] / parts[1]


def _looks_like_time(text: str) -> bool:
    return re.match(r"^\d{1,2}\s*(?::|\\colon)\s*[0-5]\d(?!\d)", text) is not None


def _parse_ratio_or_time(text: str) -> tuple[list[Fraction], str] | None:
    """(the numbers between the colons, "a" or "p" for a.m. or p.m., else "")."""
    wrapped = _TEXT.match(text)
    match = _COLON.match(wrapped[1].strip() if wrapped else text)
    if match is None:
        return None
    half = _HALF.match(match["half"]) if match["half"] else None
    if match["half"] and half is None:
        return None
    return [Fraction(part) for part in _PART.split(match["parts"])], half[1].lower() if half else ""
