"""Parse numbers exactly, in the notations that answers use.

No floats: 0.1 is 1/10, and 1e400 does not overflow. A text that is not clearly one number gives None.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from vold_verifier.mathematics import units, wording

MAX_CHARS = 1000
MAX_EXPONENT = 9999
"""Larger powers of ten are refused: 10**1000000 would fill the memory of a worker."""

_MARKUP = re.compile(r"\\(?:left|right|displaystyle|!|;|:|quad)(?![A-Za-z])|\\[()\[\]]|(?<!\\)\$(?!\d)|^\*\*|\*\*$")
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
_MIXED = re.compile(r"^(?P<sign>[+-]?)(?P<whole>\d+)(?: +| and )(?P<top>\d+)/(?P<bottom>0*[1-9]\d*)$")
_CURRENCY_CODES = r"USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|AUD|CAD|KRW|Rs\.?"
_CURRENCY = re.compile(
    r"^(?P<sign>[+-]?)\s*(?:(?:US)?\\?(?P<symbol>[$€£¥₹])|\\(?P<name>euro|pounds)\b"
    rf"|(?:\\(?:text|mathrm)\s*\{{\s*)?(?P<code>{_CURRENCY_CODES})\s*\}}?(?=[\s\d.\\]))\s*(?:\\[,; ])?\s*"
)
_CURRENCY_NAMES = {"euro": "€", "pounds": "£"}
_REPEATING = re.compile(
    r"^(?P<sign>[+-]?)(?P<int>\d*)\.(?P<fixed>\d*?)(?:\\(?:overline|bar|dot)\s*(?:\{(?P<period>\d+)\}|(?P<digit>\d))"
    r"|(?P<run>\d{1,6}?)(?P=run){2,}(?:\.\.\.|\\ldots|\\dots|\\cdots))$"
)
_UNITS_AND_TEENS = """zero one two three four five six seven eight nine ten
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_WORD_NUMBERS = {word: value for value, word in enumerate(_UNITS_AND_TEENS.split())}
_WORD_TENS = """twenty thirty forty fifty sixty seventy eighty ninety"""
_TENS = {word: 10 * value for value, word in enumerate(_WORD_TENS.split(), start=2)}
_PERCENT = re.compile(
    r"\s*(?:\\[,; ]|~)*\s*(?:\\?%|percent|per cent|\\(?:text|mathrm)\s*\{\s*(?:\\?%|percent|per cent)\s*\})$",
    re.IGNORECASE,
)
_ENDS_OF_PERCENT = ("%", "t", "T", "}")
_WRAPPER = r"\\(?:text|mathrm|textrm|mbox|textbf|mathbf|textnormal|operatorname)"
_UNIT_TEXT = rf"{_WRAPPER}\s*\{{(?:[^{{}}\\\d]|\\[,;: ]|\\cdot(?![A-Za-z])|\^\s*\{{?-?[1-9]\}}?)*\}}"
_LETTER = "A-Za-zÀ-ÖØ-öø-ÿµμΩ°$€£¥₹¢\u4e00-\u9fff"
_UNIT = re.compile(
    rf"^(?P<number>.*?[\d}})!.])(?P<space>\s*(?:\\[,;: ]|~|-(?=[A-Za-z]))*\s*)"
    rf"(?P<unit>(?:\^\s*\{{?\s*\\circ\s*\}}?|\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|{_UNIT_TEXT}|\\?[{_LETTER}])"
    rf"(?:[{_LETTER} ./·'²³()~-]|\\[,;: ]|\\cdot(?![A-Za-z])|\^\s*\{{?-?[1-9]\}}?|(?<=[A-Za-z])[23](?!\d)"
    rf"|\^\s*\{{?\s*\\circ\s*\}}?|{_UNIT_TEXT}){{0,60}})$"
)
_UNIT_MARKUP = re.compile(rf"{_WRAPPER}\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}|\\[,;: ]|~")
_PIECE = re.compile(
    rf"\s*(?:,|\band\b)?\s*(?P<number>\d+(?:\.\d+)?(?:\s*/\s*\d+)?)\s*"
    rf"(?P<unit>\\?[{_LETTER}][{_LETTER}.]*|\^\s*\{{?\s*\\circ\s*\}}?|'{{1,2}}|\")\s*"
)
_QUOTED = {"'": "ft", "''": "in", '"': "in"}
MAX_PIECES = 5
_AND_A_PART = re.compile(
    rf"(?<=\d)\s*(?:{_WRAPPER}\s*\{{\s*)?\band (?:a|an|one)[ -](half|third|quarter|fourth|fifth|eighth|tenth)\b\s*\}}?",
    re.IGNORECASE,
)
_TIMES_TEN = re.compile(r"\*\s*10\s*(?:\*\*|\^)\s*\(?\{?([+-]?\d+)\}?\)?$")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written.

    value: exact, without the percent sign (50% is 50 with `percent`). places: decimal places written, None for
    fractions and powers. digits: significant digits written. unit: as written, "" for none. may_be_variables: the unit
    is letters that may be a product: 5 m. is_compound: written in several units, as 5 feet 6 inches.
    """

    value: Fraction
    percent: bool = False
    places: int | None = None
    digits: int = 0
    unit: str = ""
    may_be_variables: bool = False
    is_compound: bool = False

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
    if text.isdecimal() and text.isascii():
        return Number(Fraction(int(text)), False, 0, len(text.lstrip("0")))
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
        currency = match["symbol"] or match["code"] or _CURRENCY_NAMES[match["name"]]
        text = match["sign"] + text[match.end() :]
    percent = _PERCENT.search(text) if text[-1:] in _ENDS_OF_PERCENT else None
    if percent is not None:
        text = text[: percent.start()]
    number = _parse_without_unit(text)
    if number is not None:
        return Number(number.value, percent is not None, number.places, number.digits, currency)
    if not with_unit or percent is not None:
        return None
    if text[:1].isalpha():
        return _parse_words(text)
    text = _AND_A_PART.sub(lambda m: f" 1/{wording.PARTS[m[1].lower()]}", text)
    number = _parse_without_unit(text)
    if number is not None:
        return Number(number.value, unit=currency)
    number = _parse_with_words(text, currency)
    return number if number is not None else _parse_compound(text)


def _parse_words(text: str) -> Number | None:
    """Numbers in words: forty-two, a dozen, three hundred and five, two thirds, minus one."""
    words = text.lower().replace("-", " ").replace("hundred and ", "hundred ").split()
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = words[sign < 0 :]
    if words[:1] in (["a"], ["an"]) and len(words) > 1 and words[1] in wording.SCALES:
        words[0] = "one"
    value, length = _parse_cardinal(words)
    if not length:
        return None
    rest = " ".join(words[length:])
    if not rest:
        return Number(Fraction(sign * value))
    read = wording.read(rest, is_markup=False, is_separate=True)
    if read is None or read.may_be_variables:
        return None
    return Number(sign * (value * read.scale) ** read.power, unit=read.unit)


def _parse_cardinal(words: list[str]) -> tuple[int, int]:
    """(the number below 1000 at the start of `words`, the number of its words, 0 for none)."""
    value, length, room = 0, 0, 1000
    for word in words:
        if word == "hundred" and 0 < value < 10 and room == 1:
            value, room = 100 * value, 100
        elif word in _TENS and room >= 100:
            value, room = value + _TENS[word], 10
        elif 0 <= (digit := _WORD_NUMBERS.get(word, -1)) < room and (digit or not length):
            value, room = value + digit, 1
        else:
            break
        length += 1
    return value, length


def _parse_with_words(text: str, currency: str) -> Number | None:
    """A number and the words after it."""
    match = _UNIT.match(text)
    number = _parse_without_unit(match["number"].strip()) if match is not None else None
    if match is None or number is None:
        return None
    unit = _UNIT_MARKUP.sub(r" \1 ", match["unit"])
    is_markup = re.match(_WRAPPER, match["unit"]) is not None
    words = wording.read(unit, is_markup=is_markup, is_separate=bool(match["space"]) or unit[:1] == " ")
    if words is None or (currency and words.unit and units.convert(words.unit, currency) is None):
        return None
    if words.scale == 1 and words.power == 1:
        return replace(number, unit=currency or words.unit, may_be_variables=words.may_be_variables)
    return Number((number.value * words.scale) ** words.power, unit=currency or words.unit)


def _parse_compound(text: str) -> Number | None:
    """A quantity in several units, from the largest to the smallest: 1 hour 30 minutes, 5 feet 6 inches, 5'6"."""
    sign = -1 if text.startswith("-") else 1
    text = _UNIT_MARKUP.sub(r" \1 ", text.removeprefix("-"))
    pieces: list[tuple[Fraction, str]] = []
    position = 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None or len(pieces) == MAX_PIECES:
            return None
        number = _parse_without_unit(match["number"])
        if number is None:
            return None
        pieces.append((number.value, _QUOTED.get(match["unit"], match["unit"])))
        position = match.end()
    if len(pieces) < 2 or any(units.parse(unit) is None for _, unit in pieces):
        return None
    (total, largest), previous = pieces[0], Fraction(1)
    for value, unit in pieces[1:]:
        conversion = units.convert(unit, largest)
        if conversion is None or conversion.shift or conversion.pi or conversion.factor >= previous:
            return None
        total, previous = total + value * conversion.factor, conversion.factor
    return Number(sign * total, unit=largest, is_compound=True)


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
    text = _TIMES_TEN.sub(r"* 10^{\1}", text)
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


def converted_value(answer: Number, reference: Number) -> Fraction | None:
    """The value of `answer` in the unit of `reference`; None if there is no rational one.

    A number without a unit has the unit of the other, unless the other is written in several units.
    """
    if not answer.unit or not reference.unit:
        return None if answer.is_compound or reference.is_compound else answer.value
    conversion = units.convert(answer.unit, reference.unit)
    return None if conversion is None or conversion.pi else answer.value * conversion.factor + conversion.shift


def are_equal(reference: Number, answer: Number) -> bool:
    """Whether two numbers are equal, exactly or up to the rounding of a long decimal.

    A decimal with at least 6 decimal places and 6 significant digits equals every number that rounds to it: 0.333333 is
    1/3, and 0.33 is not. Known units are converted, and must have the same dimension. A percent sign is a unit or a
    hundredth: 25% is 25 and 1/4. If only the answer has a percent sign, and its number is below 1, the sign is a
    hundredth: 0.25% is not 0.25.
    """
    value = converted_value(answer, reference)
    is_share_of_things = (reference.percent and answer.unit) or (answer.percent and reference.unit)
    if value is None or is_share_of_things:
        return False
    if reference.percent == answer.percent:
        return _equal_or_rounded(reference, reference.value, answer, value)
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
