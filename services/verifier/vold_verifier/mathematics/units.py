"""Units of measurement: 5 cm is not 5 m, 50 mm is 5 cm, and 5 units may be 5 apples.

Only known units make a difference: an unknown word after a number is ignored.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_UNITS: dict[str, tuple[str, Fraction, str]] = {
    # unit: (dimension, size in the base unit of the dimension, names in the singular)
    "m": ("length", Fraction(1), "m meter metre"),
    "mm": ("length", Fraction(1, 1000), "mm millimeter millimetre"),
    "cm": ("length", Fraction(1, 100), "cm centimeter centimetre"),
    "dm": ("length", Fraction(1, 10), "dm decimeter decimetre"),
    "km": ("length", Fraction(1000), "km kilometer kilometre"),
    "in": ("length", Fraction(254, 10000), "in inch inche"),
    "ft": ("length", Fraction(3048, 10000), "ft foot feet"),
    "yd": ("length", Fraction(9144, 10000), "yd yard"),
    "mi": ("length", Fraction(1609344, 1000), "mi mile"),
    "g": ("mass", Fraction(1), "g gram gm"),
    "mg": ("mass", Fraction(1, 1000), "mg milligram"),
    "kg": ("mass", Fraction(1000), "kg kilogram kilo"),
    "t": ("mass", Fraction(1000000), "tonne"),
    "lb": ("mass", Fraction(45359237, 100000), "lb pound"),
    "oz": ("mass", Fraction(45359237, 1600000), "oz ounce"),
    "l": ("volume", Fraction(1), "l liter litre"),
    "ml": ("volume", Fraction(1, 1000), "ml milliliter millilitre"),
    "gal": ("volume", Fraction(3785411784, 1000000000), "gal gallon"),
    "s": ("time", Fraction(1), "s sec second"),
    "min": ("time", Fraction(60), "min minute"),
    "h": ("time", Fraction(3600), "h hr hour"),
    "d": ("time", Fraction(86400), "day"),
    "week": ("time", Fraction(604800), "week wk"),
    "month": ("months", Fraction(1), "month"),
    "y": ("months", Fraction(12), "year yr"),
    "deg": ("angle", Fraction(1), "degree deg °"),
    "rad": ("radians", Fraction(1), "radian rad"),
    "dollar": ("dollars", Fraction(1), "dollar usd $"),
    "cent": ("dollars", Fraction(1, 100), "cent ¢"),
    "euro": ("euros", Fraction(1), "euro eur €"),
    "sterling": ("sterling", Fraction(1), "gbp £"),
    "yen": ("yen", Fraction(1), "yen jpy ¥"),
    "rupee": ("rupees", Fraction(1), "rupee inr ₹"),
}
_UNIT_BY_NAME = {name: unit for unit, (_, _, names) in _UNITS.items() for name in names.split()}
_ABBREVIATIONS = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "ft/s"}
_MARKUP = re.compile(r"\\(?:text|mathrm|textrm|mbox|rm)\s*\{([^{}]*)\}")
_POWER = re.compile(r"(?:\^\s*\{?\s*(-?[1-3])\s*\}?|([²³]))$")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?|\\degree")
_PER = re.compile(r"\s*/\s*|\s+per\s+")
_POWER_WORDS = (("square ", 2), ("sq ", 2), ("sq. ", 2), ("cubic ", 3), ("cu ", 3))


@dataclass(frozen=True, slots=True)
class Unit:
    """dimensions: (dimension, exponent), sorted. size: in the base units of the dimensions."""

    dimensions: tuple[tuple[str, int], ...]
    size: Fraction


@lru_cache(maxsize=1024)
def parse(text: str) -> Unit | None:
    """Parse a unit: "cm^2", "square centimeters", "km/h", "miles per hour". None if `text` is not a known unit."""
    text = " ".join(_DEGREE.sub("degree", _MARKUP.sub(r"\1", text)).lower().replace("\\", " ").split()).rstrip(". ")
    text = _ABBREVIATIONS.get(text, text)
    exponents: dict[str, int] = {}
    size = Fraction(1)
    for position, part in enumerate(_PER.split(text)):
        parsed = _parse_simple(part)
        if parsed is None:
            return None
        name, exponent = parsed
        exponent = exponent if position == 0 else -exponent
        dimension, scale, _ = _UNITS[name]
        exponents[dimension] = exponents.get(dimension, 0) + exponent
        size *= scale**exponent
    return Unit(tuple(sorted((d, e) for d, e in exponents.items() if e)), size)


def _parse_simple(text: str) -> tuple[str, int] | None:
    exponent = 1
    for word, power in _POWER_WORDS:
        if text.startswith(word):
            text, exponent = text[len(word) :], power
    if match := _POWER.search(text):
        exponent = int(match[1]) if match[1] else "²³".index(match[2]) + 2
        text = text[: match.start()].strip()
    name = (
        _UNIT_BY_NAME.get(text)
        or _UNIT_BY_NAME.get(text.removesuffix("s"))
        or _UNIT_BY_NAME.get(text.removesuffix("es"))
    )
    return (name, exponent) if name is not None else None


def conversion_factor(source: str, target: str) -> Fraction | None:
    """The number of units `target` in one unit `source`; 1 if either is unknown, None if their dimensions differ."""
    source_unit, target_unit = parse(source), parse(target)
    if source_unit is None or target_unit is None:
        return Fraction(1)
    return source_unit.size / target_unit.size if source_unit.dimensions == target_unit.dimensions else None
