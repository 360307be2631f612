"""Units of measurement, told apart only where both are known: 5 cm is not 5 m, but 5 units may be 5 apples."""

import re

_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "dm": "dm decimeter decimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inche",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "g gram gm",
    "kg": "kg kilogram kilo",
    "t": "tonne",
    "lb": "lb pound",
    "oz": "oz ounce",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre",
    "gal": "gal gallon",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "d": "day",
    "week": "week wk",
    "month": "month",
    "y": "year yr",
    "deg": "degree deg °",
    "rad": "rad radian",
    "dollar": "dollar usd",
    "cent": "cent",
    "euro": "euro eur",
}
_CANONICAL = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_MARKUP = re.compile(r"\\(?:text|mathrm|textrm|mbox|rm)\s*\{([^{}]*)\}")
_POWER = re.compile(r"\^\s*\{?\s*([23])\s*\}?$")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?")


def canonical(text: str) -> str | None:
    """The unit that `text` names, such as "cm^2" for "square centimeters"; None where it is not a known one."""
    text = " ".join(_DEGREE.sub("degree", _MARKUP.sub(r"\1", text)).lower().replace("\\", " ").split()).rstrip(". ")
    power = ""
    for word, exponent in (("square ", "^2"), ("sq ", "^2"), ("cubic ", "^3"), ("cu ", "^3")):
        if text.startswith(word):
            text, power = text[len(word) :], exponent
    if match := _POWER.search(text):
        text, power = text[: match.start()].strip(), f"^{match.group(1)}"
    name = _CANONICAL.get(text) or _CANONICAL.get(text.removesuffix("s")) or _CANONICAL.get(text.removesuffix("es"))
    return name + power if name is not None else None


def differ(one: str, other: str) -> bool:
    """Whether both are known units and not the same."""
    first, second = canonical(one), canonical(other)
    return first is not None and second is not None and first != second
