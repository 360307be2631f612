"""Parse numbers exactly, in the notations that answers use.

No floats: 0.1 is 1/10, and 1e400 does not overflow. A text that is not clearly one number gives None.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from vold_verifier.mathematics import units

MAX_CHARS = 1000
MAX_EXPONENT = 9999
"""Larger powers of ten are refused: 10**1000000 would fill the memory of a worker."""

_MARKUP = re.compile(r"\\(?:left|right|displaystyle|!|;|:|quad)(?![A-Za-z])|\\[()\[\]]|(?<!\\)\$(?!\d)|\*\*")
_WRAPPED = re.compile(r"^\\(?:text|mathrm|mathbf|textbf|mathit|boxed|displaystyle)\s*\{([^{}]*)\}$")
_FRACTION = re.compile(
    r"^(?P<sign>[+-]?)\s*(?P<whole>\d+)?\s*\\[dtc]?frac\s*(?:\{\s*(?P<top>-?[^{}]+)\}|(?P<top1>\d))\s*"
    r"(?:\{\s*(?P<bottom>-?[^{}]+)\}|(?P<bottom1>\d))$"
)
_POWER = re.compile(
    r"^(?P<sign>[+-]?)(?:(?P<lead>[^\\*x]+?)\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*(?:\{\s*(?P<e1>[+-]?\d+)\s*\}|(?P<e2>[+-]?\d+))$"
)
_DECIMAL = re.compile(
    r"^(?P<sign>[+-]?)\s*(?P<int>\d{1,3}(?P<sep>,|\{,\}|\\,| |_|')\d{3}(?:(?P=sep)\d{3})*|\d+)?"
    r"(?P<frac>\.\d*)?(?:[eE](?P<exp>[+-]?\d+))?$"
)
_MIXED = re.compile(r"^(?P<sign>[+-]?)(?P<whole>\d+)(?: +|-| and )(?P<top>\d+)/(?P<bottom>0*[1-9]\d*)$")
_CURRENCY = re.compile(r"^(?P<sign>[+-]?)\s*(?:\\?(?P<symbol>[$€£¥₹])|\\(?P<name>euro|pounds)\b)\s*")
_REPEATING = re.compile(
    r"^(?P<sign>[+-]?)(?P<int>\d*)\.(?P<fixed>\d*?)(?:\\(?:overline|bar|dot)\s*(?:\{(?P<period>\d+)\}|(?P<digit>\d))"
    r"|(?P<run>\d{1,6}?)(?P=run){2,}(?:\.\.\.|\\ldots|\\dots|\\cdots))$"
)
_UNITS_AND_TEENS = """zero one two three four five six seven eight nine ten
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_WORD_NUMBERS = {word: value for value, word in enumerate(_UNITS_AND_TEENS.split())}
_WORD_TENS = """twenty thirty forty fifty sixty seventy eighty ninety"""
_TENS = {word: 10 * value for value, word in enumerate(_WORD_TENS.split(), start=2)}
_PERCENT = re.compile(r"\s*(?:\\?%|\\%|percent|per cent)$", re.IGNORECASE)
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_UNIT_TEXT = r"\\(?:text|mathrm|textrm|mbox)\s*\{[A-Za-zµμΩ ./²³°-]*\}"
_UNIT = re.compile(
    rf"^(?P<number>.*[\d}}.])\s*(?:\\[,;~ ]|~)*\s*(?P<unit>(?:\^\s*\{{?\\circ\}}?|\\circ|{_UNIT_TEXT}|[A-Za-zµμΩ])"
    rf"(?:[A-Za-zµμΩ ./·²³-]|\^\s*\{{?-?[1-3]\}}?|{_UNIT_TEXT}){{0,40}})$"
)
_DEGREE = re.compile(r"^\^?\s*\{?\s*\\circ\s*\}?\s*(.*)$")
_NOT_UNITS = frozenset(
    ["or", "and", "not", "nor", "to", "plus", "minus", "times", "over", "by", "divided", "of", "base"]
)
_UNIT_MARKUP = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written.

    value: exact, without the percent sign (50% is 50 with `percent`). places: decimal places written, None for
    fractions and powers. digits: significant digits written. unit: in lower case, "" for none.
    """

    value: Fraction
    percent: bool = False
    places: int | None = None
    digits: int = 0
    unit: str = ""

    def possible_values(self) -> tuple[Fraction, ...]:
        """The possible values: 50% is 50 (the sign is a unit) or 1/2."""
        return (self.value, self.value / 100) if self.percent else (self.value,)


@lru_cache(maxsize=4096)  # the completions of a group have the same reference, and often the same answer
def parse(text: str, *, with_unit: bool = False) -> Number | None:
    """Parse `text` as one number; None if it is not one.

    Understands signs, thousands separators (comma, space, thin space, underscore, apostrophe), decimals, 1e3,
    1.5 x 10^3, a/b, \\frac{a}{b}, mixed numbers, percent and currency signs. `text` is the output of
    `text.symbols_to_latex`. with_unit: the words after the number are its unit, and 5 million is a number.
    """
    if len(text) > MAX_CHARS:
        return None
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1]
    text = _MARKUP.sub("", text).strip()
    while wrapped := _WRAPPED.match(text):
        text = wrapped.group(1).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    currency = ""
    if match := _CURRENCY.match(text):
        currency = match["symbol"] or {"euro": "€", "pounds": "£"}[match["name"]]
        text = match["sign"] + text[match.end() :]
    percent = _PERCENT.search(text)
    if percent is not None:
        text = text[: percent.start()]
    number = _parse_without_unit(text)
    if number is not None:
        return Number(number.value, percent is not None, number.places, number.digits, currency)
    if with_unit and text[:1].isalpha():
        return _parse_words(text)
    if with_unit and percent is None and (match := _UNIT.match(text)):
        number = _parse_without_unit(match["number"].strip())
        if number is not None:
            unit = _UNIT_MARKUP.sub(r"\1", match["unit"])
            is_separate = not text[: match.start("unit")][-1].isdigit()
            return _attach_unit(number, unit, is_markup="\\" in match["unit"], is_separate=is_separate)
    return None


def _parse_words(text: str) -> Number | None:
    first, _, rest = text.lower().partition("-")
    if first in _WORD_NUMBERS and not rest:
        return Number(Fraction(_WORD_NUMBERS[first]))
    if first in _TENS and (not rest or _WORD_NUMBERS.get(rest, 10) < 10):
        return Number(Fraction(_TENS[first] + _WORD_NUMBERS.get(rest, 0)))
    return None


def _attach_unit(number: Number, unit: str, *, is_markup: bool, is_separate: bool) -> Number | None:
    """`number` with `unit`; None if `unit` is not a unit.

    is_markup: the unit is written with a LaTeX command. is_separate: the character before the unit is no digit.
    """
    if (degree := _DEGREE.match(unit)) and degree[1] not in ("", "C", "F", "K"):
        return None
    first, _, rest = " ".join(unit.lower().split()).partition(" ")
    if first in _NOT_UNITS or {"or", "and", "not"}.intersection(rest.split()):
        return None
    if not is_markup and units.parse(unit) is None and len(first) < (3 if is_separate else 4):
        return None  # 3x and 2ab are products
    scale = _SCALES.get(first)
    if scale is not None:
        return Number(number.value * scale, unit=rest)
    return Number(number.value, False, number.places, number.digits, f"{first} {rest}".strip())


def _parse_without_unit(text: str) -> Number | None:
    if match := _DECIMAL.match(text):
        return _parse_decimal(match)
    if match := _FRACTION.match(text):
        numerator = _parse_without_unit(match["top"] or match["top1"])
        denominator = _parse_without_unit(match["bottom"] or match["bottom1"])
        if numerator is None or denominator is None or not denominator.value:
            return None
        whole = int(match["whole"] or 0)
        if whole and (numerator.value < 0 or denominator.value < 0):
            return None
        value = whole + numerator.value / denominator.value
        return Number(-value if match["sign"] == "-" else value)
    if match := _POWER.match(text):
        exponent = int(match["e1"] or match["e2"])
        factor = _parse_without_unit(match["lead"].strip()) if match["lead"] else Number(Fraction(1))
        if factor is None or abs(exponent) > MAX_EXPONENT:
            return None
        value = factor.value * Fraction(10) ** exponent
        return Number(-value if match["sign"] == "-" else value)
    if match := _REPEATING.match(text):
        return _parse_repeating(match)
    if match := _MIXED.match(text):
        value = int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"]))
        return Number(-value if match["sign"] == "-" else value)
    quotient = text.split("/")
    if len(quotient) == 2:
        numerator, denominator = _parse_without_unit(quotient[0].strip()), _parse_without_unit(quotient[1].strip())
        if numerator is not None and denominator is not None and denominator.value and denominator.value > 0:
            return Number(numerator.value / denominator.value)
    return None


def _parse_repeating(match: re.Match[str]) -> Number | None:
    period = match["period"] or match["digit"] or match["run"]
    whole, fixed = match["int"] or "0", match["fixed"]
    shift = 10 ** len(fixed)
    value = Fraction(int(whole + fixed), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))
    return Number(-value if match["sign"] == "-" else value)


def _parse_decimal(match: re.Match[str]) -> Number | None:
    whole, fraction, exponent = match["int"] or "", match["frac"] or "", int(match["exp"] or 0)
    if match["sep"]:
        whole = whole.replace(match["sep"], "")
    decimals = fraction[1:]
    if not (whole or decimals) or abs(exponent) > MAX_EXPONENT:
        return None
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    if exponent:
        value *= Fraction(10) ** exponent
    digits = len((whole + decimals).lstrip("0"))
    return Number(-value if match["sign"] == "-" else value, False, max(0, len(decimals) - exponent), digits)


ROUNDING_DIGITS = 6


def are_equal(reference: Number, answer: Number) -> bool:
    """Whether two numbers are equal, exactly or up to the rounding of a long decimal.

    A decimal with at least 6 decimal places and 6 significant digits equals every number that rounds to it: 0.333333 is
    1/3, and 0.33 is not. Known units are converted, and must have the same dimension. A percent sign is a unit or a
    hundredth: 25% is 25 and 1/4. If only the answer has a percent sign, and its number is below 1, the sign is a
    hundredth: 0.25% is not 0.25.
    """
    scale = units.conversion_factor(answer.unit, reference.unit) if answer.unit and reference.unit else Fraction(1)
    if scale is None:
        return False
    if reference.percent == answer.percent:
        return _equal_or_rounded(reference, reference.value, answer, answer.value * scale)
    possible_values = answer.possible_values()
    if answer.percent and abs(answer.value) < 1:
        possible_values = possible_values[1:]
    return any(_equal_or_rounded(reference, x, answer, y) for x in reference.possible_values() for y in possible_values)


def _equal_or_rounded(first: Number, x: Fraction, second: Number, y: Fraction) -> bool:
    """Whether the values x of `first` and y of `second` are equal, or either is the rounding of the other."""
    return x == y or _is_rounding(first, x, y) or _is_rounding(second, y, x)


def _is_rounding(number: Number, rounded: Fraction, exact: Fraction) -> bool:
    places = number.places
    if places is None or places < ROUNDING_DIGITS or number.digits < ROUNDING_DIGITS:
        return False
    return abs(rounded - exact) * 2 * 10**places <= 1
