"""Numbers as they are written in answers, read exactly.

No floats: 0.1 is 1/10, and 1e400 is itself. What is not plainly one number is None, never a guess.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from vold_verifier import units

MAX_CHARS = 1000
MAX_EXPONENT = 9999
"""Powers of ten beyond this are refused: 10**1000000 would fill a worker's memory."""

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
_CURRENCY = re.compile(r"^([+-]?)\s*(?:\\?\$|[€£¥₹]|\\(?:euro|pounds)\b)\s*")
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
_NOT_UNITS = frozenset(
    ["or", "and", "not", "nor", "to", "plus", "minus", "times", "over", "by", "divided", "of", "base"]
)
_UNIT_WRAP = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Number:
    """value: exact, as written (50% is 50 with `percent`). places: decimals written, None for fractions and powers.
    digits: significant digits written. unit: in lower case, "" for none.
    """

    value: Fraction
    percent: bool = False
    places: int | None = None
    digits: int = 0
    unit: str = ""

    def readings(self) -> tuple[Fraction, ...]:
        """The values it may stand for: 50% is 50 (the sign is a unit) or 1/2."""
        return (self.value, self.value / 100) if self.percent else (self.value,)


@lru_cache(maxsize=4096)  # the completions of a group share their reference, and most of them their answer
def parse(text: str, *, with_unit: bool = False) -> Number | None:
    """`text` as one number, or None. With `with_unit`, words after it are its unit, and 5 million is a number.

    Knows signs, thousands separators (comma, space, thin space, underscore, apostrophe), decimals, 1e3, 1.5 x 10^3,
    a/b, \\frac{a}{b}, mixed numbers, percent and currency signs. `text` has been through `text.mathematical`.
    """
    if len(text) > MAX_CHARS:
        return None
    text = _MARKUP.sub("", text).strip()
    while wrapped := _WRAPPED.match(text):
        text = wrapped.group(1).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    text = _CURRENCY.sub(r"\1", text, count=1)
    percent = _PERCENT.search(text)
    if percent is not None:
        text = text[: percent.start()]
    number = _bare(text)
    if number is not None:
        return number if percent is None else Number(number.value, True, number.places, number.digits)
    if with_unit and percent is None and (match := _UNIT.match(text)):
        number = _bare(match["number"].strip())
        if number is not None:
            unit = _UNIT_WRAP.sub(r"\1", match["unit"])
            apart = not text[: match.start("unit")][-1].isdigit()
            return _with_unit(number, unit, known="\\" in match["unit"], apart=apart)
    return None


def _with_unit(number: Number, unit: str, *, known: bool, apart: bool) -> Number | None:
    first, _, rest = " ".join(unit.lower().split()).partition(" ")
    if first in _NOT_UNITS or {"or", "and", "not"}.intersection(rest.split()):
        return None
    if not known and units.canonical(unit) is None and len(first) < (3 if apart else 4):
        return None  # 3x and 2ab are products
    scale = _SCALES.get(first)
    if scale is not None:
        return Number(number.value * scale, unit=rest)
    return Number(number.value, False, number.places, number.digits, f"{first} {rest}".strip())


def _bare(text: str) -> Number | None:
    if match := _DECIMAL.match(text):
        return _decimal(match)
    if match := _FRACTION.match(text):
        top, bottom = _bare(match["top"] or match["top1"]), _bare(match["bottom"] or match["bottom1"])
        if top is None or bottom is None or not bottom.value:
            return None
        whole = int(match["whole"] or 0)
        if whole and (top.value < 0 or bottom.value < 0):
            return None
        value = whole + top.value / bottom.value
        return Number(-value if match["sign"] == "-" else value)
    if match := _POWER.match(text):
        exponent = int(match["e1"] or match["e2"])
        lead = _bare(match["lead"].strip()) if match["lead"] else Number(Fraction(1))
        if lead is None or abs(exponent) > MAX_EXPONENT:
            return None
        value = lead.value * Fraction(10) ** exponent
        return Number(-value if match["sign"] == "-" else value)
    if match := _MIXED.match(text):
        value = int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"]))
        return Number(-value if match["sign"] == "-" else value)
    over = text.split("/")
    if len(over) == 2:
        top, bottom = _bare(over[0].strip()), _bare(over[1].strip())
        if top is not None and bottom is not None and bottom.value and bottom.value > 0:
            return Number(top.value / bottom.value)
    return None


def _decimal(match: re.Match[str]) -> Number | None:
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


def same(a: Number, b: Number) -> bool:
    """Whether two numbers are equal, exactly or as a long rounding.

    A decimal with at least 6 decimals and 6 significant digits equals what it is the rounding of, so 0.333333 is 1/3
    and 0.33 is not. A percent sign is read either way. Two known units must agree.
    """
    if a.unit and b.unit and units.differ(a.unit, b.unit):
        return False
    if a.percent == b.percent:
        return _close(a, a.value, b, b.value)
    return any(_close(a, x, b, y) for x in a.readings() for y in b.readings())


def _close(a: Number, x: Fraction, b: Number, y: Fraction) -> bool:
    return x == y or _rounds(a, x, y) or _rounds(b, y, x)


def _rounds(number: Number, rounded: Fraction, exact: Fraction) -> bool:
    places = number.places
    if places is None or places < ROUNDING_DIGITS or number.digits < ROUNDING_DIGITS:
        return False
    return abs(rounded - exact) * 2 * 10**places <= 1
