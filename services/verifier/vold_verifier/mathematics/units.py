"""Units of measurement: 5 cm is not 5 m, 50 mm is 5 cm, 77 °F is 25 °C, and 5 units may be 5 apples.

The sizes are those of `unit_table`. A name is looked up whole, never evaluated.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

from vold_verifier.mathematics import unit_table

MAX_CHARS = 60
MAX_FACTORS = 8
MAX_POWER = 9
_MARKUP = re.compile(r"\\(?:text|mathrm|textrm|mbox|rm|textbf|mathbf|textnormal|operatorname)\s*\{([^{}]*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°")
_SCALE_OF_DEGREES = re.compile(
    r"\bdegrees?\s*(?:(?P<c>c(?:elsius)?|centigrade)|(?P<f>f(?:ahrenheit)?)|(?P<k>k))\b", re.I
)
_NAMED_SCALE = re.compile(r"^(?:(?P<c>celsius)|(?P<f>fahrenheit))(?:\s+degrees?)?$", re.IGNORECASE)
_PRODUCT = re.compile(r"\\(?:cdot|times)(?![A-Za-z])|[·⋅*]|\\[,;: ]|~|(?<=[A-Za-z])\.(?=[A-Za-z])|\\(?![A-Za-z])")
_PER = re.compile(r"\s*/\s*|\s+per\s+|^per\s+")
_JOINED = (
    (re.compile(r"\b(light|nautical|fluid|metric|short|astronomical|electron)[ -](?=[a-z])", re.I), r"\1-"),
    (re.compile(r"\bfl\.? ?oz\b"), "fluid-ounce"),
    (
        re.compile(r"\b((?:kilo|mega|giga|milli)?(?:watt|amp|ampere|newton))[ -](hours?|met(?:er|re)s?)\b", re.I),
        r"\1-\2",
    ),
)
_POWER_BEFORE = re.compile(r"^(?:(square|sq\.?)|(cubic|cu\.?))[ -]+", re.IGNORECASE)
_POWER_AFTER = re.compile(r"(?:\s*\^\s*\{?\s*\(?([+-]?\d)\)?\s*\}?|([²³])|\s+(squared|cubed))$", re.IGNORECASE)
_GENERIC = frozenset(
    {
        "unit",
        "units",
        "square unit",
        "square units",
        "cubic unit",
        "cubic units",
        "sq units",
        "sq. units",
        "units^2",
        "units^3",
        "unit^2",
        "unit^3",
    }
)
_MODIFIERS = re.compile(
    r"\s+(?:tall|long|wide|high|deep|old|away|apart|total|in total|altogether|each|left|remaining|thick|of age)$", re.I
)


@dataclass(frozen=True, slots=True)
class Unit:
    """dimensions: (dimension, exponent), sorted. size: in the base units of the dimensions, times π**pi. zero: of a
    temperature scale, in kelvin.
    """

    dimensions: tuple[tuple[str, int], ...]
    size: Fraction
    pi: int = 0
    zero: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A value v in one unit is v * factor * π**pi + shift in another."""

    factor: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)
    pi: int = 0

    @property
    def is_identity(self) -> bool:
        return self == _SAME


_SAME = Conversion()
COMMON = frozenset(unit_table.COMMON.split())
LETTERS = frozenset("mgshlL")
"""The letters that are a unit directly after a number: 5m."""


@cache
def _table() -> tuple[dict[str, Unit], dict[str, Unit], dict[str, Unit]]:
    """(units by symbol, by name in lower case, and by symbol in lower case where only one unit has it)."""
    prefixes = [part.split() for part in unit_table.PREFIXES.split(",")]
    symbols: dict[str, Unit] = {}
    prefixed: dict[str, Unit] = {}
    names: dict[str, Unit] = {}
    for row in unit_table.ROWS.strip().splitlines():
        own_symbols, own_names, size, dimensions, prefix_rule = (cell.strip() for cell in row.split("|"))
        unit = Unit(_dimensions(dimensions), _fraction(size))
        symbols |= dict.fromkeys(own_symbols.split(), unit)
        names |= dict.fromkeys(own_names.split(), unit)
        for symbol, name, exponent in prefixes if prefix_rule else ():
            if prefix_rule == "large" and int(exponent) < 3:
                continue
            larger = Unit(unit.dimensions, unit.size * Fraction(10) ** int(exponent))
            prefixed |= {
                symbol + own: larger for own in own_symbols.split() if len(own) < 4 and own not in ("gm", "gms")
            }
            names |= {name + own: larger for own in own_names.split()}
    radian = Unit((("A", 1),), Fraction(180), pi=-1)
    symbols["rad"] = names["radian"] = radian
    for name, (zero, degree) in unit_table.TEMPERATURES.items():
        names[name] = Unit((("Θ", 1),), Fraction(degree), zero=Fraction(zero))
    symbols = prefixed | symbols
    by_lower: dict[str, list[Unit]] = {}
    for symbol, unit in symbols.items():
        by_lower.setdefault(symbol.lower(), []).append(unit)
    return symbols, names, {lower: found[0] for lower, found in by_lower.items() if len(lower) > 1 and len(found) == 1}


def _fraction(text: str) -> Fraction:
    top, _, bottom = text.partition("/")
    return Fraction(top) / Fraction(bottom or 1)


def _dimensions(text: str) -> tuple[tuple[str, int], ...]:
    parts = (re.fullmatch(r"([A-Za-zΘ]+)(-?\d)?", part) for part in text.split())
    return tuple(sorted((part[1], int(part[2] or 1)) for part in parts if part is not None))


@lru_cache(maxsize=2048)
def parse(text: str) -> Unit | None:
    """Parse a unit: "cm^2", "square centimeters", "km/h", "J/(kg K)". None if `text` is not a known unit."""
    if len(text) > MAX_CHARS:
        return None
    text = " ".join(_PRODUCT.sub(" ", _DEGREE.sub("degree ", _MARKUP.sub(r" \1 ", text))).split()).rstrip(". ")
    text = _SCALE_OF_DEGREES.sub(lambda m: "K" if m["k"] else "degc" if m["c"] else "degf", text)
    if match := _NAMED_SCALE.match(text):
        text = "degc" if match["c"] else "degf"
    text = _MODIFIERS.sub("", text)
    for pattern, replacement in _JOINED:
        text = pattern.sub(replacement, text)
    text = text.replace("( ", "(").replace(" )", ")")
    exponents: dict[str, int] = {}
    size, pi, zero, factors = Fraction(1), 0, Fraction(0), 0
    for position, product in enumerate(_PER.split(text)):
        if position == 0 and not product:
            continue
        if product.startswith("(") and product.endswith(")"):
            product = product[1:-1]
        for part, power in _factors(product):
            unit, factors = _look_up(part), factors + 1
            if unit is None or factors > MAX_FACTORS:
                return None
            power = power if position == 0 else -power
            for dimension, exponent in unit.dimensions:
                exponents[dimension] = exponents.get(dimension, 0) + exponent * power
            size, pi, zero = size * unit.size**power, pi + unit.pi * power, unit.zero
    if not factors:
        return None
    return Unit(
        tuple(sorted((d, e) for d, e in exponents.items() if e)), size, pi, zero if factors == 1 else Fraction(0)
    )


def _factors(product: str) -> list[tuple[str, int]]:
    """(name, power) of each factor of "kg m^2" or "square feet"; an unknown name stands for a text that is no unit."""
    factors: list[tuple[str, int]] = []
    words = re.sub(r"\s*\^\s*(\{[^{}]*\}|\([^()]*\)|[+-]?\d)", r"^\1", product).split()
    while words:
        word = words.pop(0)
        power = 1
        if match := _POWER_BEFORE.match(word + " "):
            power = 2 if match[1] else 3
            word = words.pop(0) if words else ""
        if words and words[0].lower() in ("squared", "cubed"):
            power = 2 if words.pop(0).lower() == "squared" else 3
        if match := _POWER_AFTER.search(word):
            power = int(match[1]) if match[1] else "²³".index(match[2]) + 2 if match[2] else 1
            word = word[: match.start()]
        factors.append((word, power))
    return factors if all(0 < abs(power) <= MAX_POWER for _, power in factors) else [("", 1)]


def _look_up(name: str) -> Unit | None:
    symbols, names, by_lower = _table()
    lower = name.lower()
    return (
        symbols.get(name)
        or names.get(lower)
        or names.get(lower.removesuffix("s"))
        or names.get(lower.removesuffix("es"))
        or by_lower.get(lower)
        or (by_lower.get(lower.removesuffix("s")) if len(lower) > 3 else None)
    )


def is_generic(text: str) -> bool:
    """Whether `text` is "units" or "square units", which stand for any unit."""
    return " ".join(_MARKUP.sub(r"\1", text).lower().split()).replace(" ^", "^") in _GENERIC


def convert(source: str, target: str) -> Conversion | None:
    """The conversion of values with unit `source` to unit `target`; None if the units measure different things.

    Two unknown words, or "units" and anything else, count as the same unit. A known unit is no unknown word.
    """
    source_unit, target_unit = parse(source), parse(target)
    if source_unit is None or target_unit is None:
        return _SAME if source_unit is target_unit or is_generic(source) or is_generic(target) else None
    if source_unit.dimensions != target_unit.dimensions:
        return None
    factor = source_unit.size / target_unit.size
    return Conversion(factor, (source_unit.zero - target_unit.zero) / target_unit.size, source_unit.pi - target_unit.pi)
