"""Pairs of quantities: units, times, money, scale words, and what follows a number. See verifier_pairs.py."""

from collections.abc import Iterator
from fractions import Fraction
from random import Random

from verifier_pairs import Kind, Pair, both
from verifier_pairs_numbers import decimal, fraction, number

SI = {
    "length": (("nm", -9), ("mm", -3), ("cm", -2), ("dm", -1), ("m", 0), ("km", 3)),
    "mass": (("mg", -3), ("g", 0), ("kg", 3)),
    "energy": (("mJ", -3), ("J", 0), ("kJ", 3), ("MJ", 6)),
    "power": (("mW", -3), ("W", 0), ("kW", 3), ("GW", 9)),
    "force": (("mN", -3), ("N", 0), ("kN", 3), ("MN", 6)),
    "pressure": (("Pa", 0), ("hPa", 2), ("kPa", 3), ("MPa", 6)),
    "voltage": (("mV", -3), ("V", 0), ("kV", 3)),
    "current": (("mA", -3), ("A", 0), ("kA", 3)),
    "frequency": (("Hz", 0), ("kHz", 3), ("MHz", 6), ("GHz", 9)),
    "charge": (("nC", -9), ("mC", -3), ("C", 0)),
    "amount": (("mmol", -3), ("mol", 0), ("kmol", 3)),
    "volume": (("mL", -3), ("cL", -2), ("dL", -1), ("L", 0)),
    "resistance": ((r"m\Omega", -3), (r"\Omega", 0), (r"k\Omega", 3)),
    "capacitance": (("pF", -12), ("nF", -9), ("mF", -3), ("F", 0)),
}
SPELLED = {
    "km": "kilometers",
    "cm": "centimetres",
    "kg": "kilograms",
    "g": "grams",
    "J": "joules",
    "W": "watts",
    "kW": "kilowatts",
    "N": "newtons",
    "Pa": "pascals",
    "V": "volts",
    "A": "amperes",
    "Hz": "hertz",
    "mol": "moles",
    "L": "litres",
    "mL": "milliliters",
    "C": "coulombs",
    "m": "meters",
    "mm": "millimeters",
}


def measured(rng: Random, value: Fraction, unit: str) -> str:
    if "Omega" in unit:
        prefix = unit.replace(r"\Omega", "")
        return rf"{number(value)}\ \text{{{prefix}}}\Omega" if prefix else rf"{number(value)} \Omega"
    forms = [rf"\text{{ {unit}}}", rf"\,\mathrm{{{unit}}}", rf" \text{{{unit}}}", rf"\ \mathrm{{{unit}}}"]
    if unit in SPELLED:
        forms += [f" {SPELLED[unit]}", rf"\text{{ {SPELLED[unit]}}}"]
    return number(value) + rng.choice(forms)


def units(rng: Random) -> Iterator[Pair]:
    """Prefixes: powers of ten."""
    dimension, other = rng.sample(sorted(SI), 2)
    (unit, power), (second, second_power) = rng.sample(SI[dimension], 2)
    value = Fraction(rng.randrange(1, 500), rng.choice([1, 1, 1, 2, 4, 5, 10]))
    converted = value * Fraction(10) ** (power - second_power)
    wrong = [
        measured(rng, value, second),
        measured(rng, value, rng.choice(SI[other])[0]),
        measured(rng, converted * 10, second),
        measured(rng, value + 1, unit),
    ]
    right = [measured(rng, value, unit), number(value)]
    if decimal(converted):
        right.append(measured(rng, converted, second))
    yield from both(rng, measured(rng, value, unit), right, wrong)


RATES = (("km/h", Fraction(5, 18)), ("m/s", Fraction(1)), ("km/s", Fraction(1000)), ("cm/s", Fraction(1, 100)))
DENSITIES = (("g/cm^3", Fraction(1000)), ("kg/m^3", Fraction(1)), ("kg/L", Fraction(1000)))
AREAS = (
    ("mm^2", Fraction(1, 10**6)),
    ("cm^2", Fraction(1, 10**4)),
    ("m^2", Fraction(1)),
    ("km^2", Fraction(10**6)),
    ("ha", Fraction(10**4)),
)
VOLUMES = (
    ("cm^3", Fraction(1, 10**6)),
    ("m^3", Fraction(1)),
    ("L", Fraction(1, 1000)),
    ("mL", Fraction(1, 10**6)),
    ("dm^3", Fraction(1, 1000)),
)
CUSTOMARY = (
    ("in", Fraction(127, 5000)),
    ("ft", Fraction(381, 1250)),
    ("yd", Fraction(1143, 1250)),
    ("mi", Fraction(201168, 125)),
)
DURATIONS = (
    ("s", Fraction(1)),
    ("min", Fraction(60)),
    ("h", Fraction(3600)),
    ("days", Fraction(86400)),
    ("weeks", Fraction(604800)),
)


def with_power(value: Fraction, unit: str, rng: Random) -> str:
    base, _, power = unit.partition("^")
    if power:
        return number(value) + rng.choice(
            [rf"\text{{ {base}}}^{power}", rf"\,\mathrm{{{base}^{power}}}", rf"\text{{ {base}}}^{{{power}}}"]
        )
    return number(value) + rng.choice([rf"\text{{ {unit}}}", rf"\,\mathrm{{{unit}}}"])


def derived_units(rng: Random) -> Iterator[Pair]:
    """Areas, volumes, speeds, densities, customary lengths, durations."""
    groups = (RATES, DENSITIES, AREAS, VOLUMES, CUSTOMARY, DURATIONS)
    group, other = rng.sample(groups, 2)
    (unit, size), (second, second_size) = rng.sample(group, 2)
    value = Fraction(rng.randrange(1, 300))
    converted = value * size / second_size
    right = [with_power(value, unit, rng)]
    if decimal(converted) and size != second_size:
        right.append(with_power(converted, second, rng))
    wrong = [with_power(value, rng.choice(other)[0], rng), with_power(value + 1, unit, rng)]
    if size != second_size:
        wrong.append(with_power(value, second, rng))
    yield from both(rng, with_power(value, unit, rng), right, wrong)


def temperatures(rng: Random) -> Iterator[Pair]:
    celsius = 5 * rng.randrange(-20, 60)
    fahrenheit, kelvin = celsius * 9 // 5 + 32, decimal(Fraction(celsius) + Fraction(27315, 100))
    scales = {"C": str(celsius), "F": str(fahrenheit)}
    first, second = rng.sample("CF", 2)
    wrong = [
        rf"{scales[first]}^\circ\text{{{second}}}",
        rf"{int(scales[first]) + 1}^\circ\text{{{first}}}",
        rf"{scales[first]}\text{{ K}}",
    ]
    if celsius == fahrenheit:
        wrong = wrong[1:]
    yield from both(
        rng,
        rf"{scales[first]}^\circ\text{{{first}}}",
        [
            rf"{scales[second]}^\circ \mathrm{{{second}}}",
            rf"{scales[second]}°{second}",
            rf"{kelvin}\text{{ K}}",
            rf"{scales[first]} \text{{ degrees {'Celsius' if first == 'C' else 'Fahrenheit'}}}",
        ],
        wrong,
    )


def compounds(rng: Random) -> Iterator[Pair]:
    """Quantities in two units."""
    large, small, ratio = rng.choice(
        [
            ("hours", "minutes", 60),
            ("minutes", "seconds", 60),
            ("feet", "inches", 12),
            ("pounds", "ounces", 16),
            ("days", "hours", 24),
            ("weeks", "days", 7),
            ("m", "cm", 100),
            ("km", "m", 1000),
            ("kg", "g", 1000),
            ("years", "months", 12),
        ]
    )
    first, second = rng.randrange(1, 40), rng.randrange(1, ratio)
    total = first * ratio + second
    wrong = [
        f"{first} {large} {second % (ratio - 1) + 1} {small}"
        if second % (ratio - 1) + 1 != second
        else f"{first} {large}",
        f"{first + 1} {large} {second} {small}",
        f"{total + 1} {small}",
        f"{first} {large}",
        f"{total} {large}",
    ]
    yield from both(
        rng,
        f"{first} {large} {second} {small}",
        [
            f"{total} {small}",
            f"{first} {large} and {second} {small}",
            rf"{first}\text{{ {large} }}{second}\text{{ {small}}}",
            rf"{total}\text{{ {small}}}",
        ],
        wrong,
    )
    yield from both(
        rng,
        rf"{total}\text{{ {small}}}",
        [f"{first} {large} {second} {small}"],
        [f"{first} {large} {second + 1} {small}"],
    )


def times(rng: Random) -> Iterator[Pair]:
    hour, minute = rng.randrange(0, 24), rng.randrange(60)
    twelve, half = (hour % 12 or 12), ("a.m." if hour < 12 else "p.m.")
    other_half = "p.m." if half == "a.m." else "a.m."
    later = (minute + rng.randrange(1, 59)) % 60
    upper = half.replace(".", "").upper()
    yield from both(
        rng,
        rf"{twelve}:{minute:02}\text{{ {half}}}",
        [
            f"{twelve}:{minute:02} {upper}",
            f"{twelve}:{minute:02}{upper}",
            f"{hour:02}:{minute:02}" if hour > 12 else f"{twelve}:{minute:02} {half}",
            rf"{twelve}\!:\!{minute:02} \text{{ {upper}}}",
        ],
        [
            f"{twelve}:{minute:02} {other_half}",
            f"{twelve}:{later:02} {half}",
            f"{(twelve % 12) + 1}:{minute:02} {half}",
        ],
    )


def money(rng: Random) -> Iterator[Pair]:
    cents = rng.randrange(150, 900000)
    value = decimal(Fraction(cents, 100))
    assert value is not None
    padded = f"{cents // 100}.{cents % 100:02}"
    other = rng.choice(["€", "£", "¥", "₹"])
    yield from both(
        rng,
        rf"\${padded}",
        [
            value,
            f"{padded} dollars",
            rf"\${cents // 100:,}.{cents % 100:02}",
            rf"{cents}\text{{ cents}}",
            f"USD {padded}",
        ],
        [
            f"{other}{padded}",
            rf"\${cents}",
            f"{padded} cents",
            rf"\${decimal(Fraction(cents + 1, 100))}",
            f"{padded} euros",
        ],
    )


SCALES = (
    ("hundred", 10**2),
    ("thousand", 10**3),
    ("million", 10**6),
    ("billion", 10**9),
    ("trillion", 10**12),
    ("lakh", 10**5),
    ("crore", 10**7),
    ("dozen", 12),
)


def scale_words(rng: Random) -> Iterator[Pair]:
    (word, scale), (other, other_scale) = rng.sample(SCALES, 2)
    value = Fraction(rng.randrange(1, 900), rng.choice([1, 1, 2, 4, 5, 10]))
    whole = value * scale
    yield from both(
        rng,
        number(whole),
        [f"{number(value)} {word}", rf"{number(value)}\text{{ {word}}}", number(whole)],
        [f"{number(value)} {other}", f"{number(value + 1)} {word}", number(value)],
    )
    yield from both(
        rng,
        f"{number(value)} {word}",
        [number(whole)],
        [number(value), number(whole * 10), number(value * other_scale)],
    )


def percents(rng: Random) -> Iterator[Pair]:
    hundredths = rng.randrange(2, 400)
    value = Fraction(hundredths, 100)
    yield from both(
        rng,
        rf"{hundredths}\%",
        [
            str(hundredths),
            f"{hundredths}%",
            f"{hundredths} percent",
            rf"{hundredths}\text{{ percent}}",
            number(value),
            fraction(value),
        ],
        [
            rf"{hundredths + 1}\%",
            rf"{decimal(value)}\%" if hundredths < 100 else f"{hundredths + 2}%",
            number(value / 100),
            rf"{hundredths * 100}\%",
        ],
    )
    if hundredths % 100:
        yield from both(rng, number(value), [rf"{hundredths}\%"], [rf"{hundredths * 10}\%", rf"{hundredths + 1}\%"])


NOUNS = (
    "apples",
    "ways",
    "students",
    "marbles",
    "cookies",
    "cars",
    "pages",
    "square units",
    "people",
    "tickets",
    "trees",
    "books per shelf",
    "boxes of pencils",
    "chairs",
    "miles",
    "points",
    "stamps",
    "triangles",
    "pairs of socks",
    "edges",
    "vertices",
    "coins",
    "girls",
    "bottles",
    "roses",
    "games",
    "cats",
)
CLAIMS = (
    "is wrong",
    "is not correct",
    "would be too many",
    "or so",
    "or less",
    "or more",
    "and counting",
    "at least",
    "at most",
    "does not satisfy the equation",
    "is an upper bound",
    "plus some",
    "minus one",
    "times as many",
    "percent of them",
    "squared",
    "cubed",
    "factorial",
    "to the fifth power",
    "thirds",
    "eighths",
    "less than y",
    "more than n",
    "choose two",
    "if n is even",
    "unless x is zero",
    "in base seven",
    "mod eleven",
    "below zero",
    "times x",
    "over nine",
    "divided by two",
    "and a bit",
    "except one",
    "for some x",
    "is impossible",
    "but not zero",
    "or six",
    "and seven",
    "to eight",
    "is my guess",
    "maybe",
    "probably not",
)


def words_after(rng: Random) -> Iterator[Pair]:
    """Words after a number: things that are counted, or a claim about it."""
    value = rng.randrange(2, 2000)
    noun = rng.choice(NOUNS)
    claims = rng.sample(CLAIMS, 2)
    yield from both(
        rng,
        str(value),
        [f"{value} {noun}", rf"{value}\text{{ {noun}}}", rf"{value} \text{{{noun}}}"],
        [f"{value} {claims[0]}", rf"{value}\text{{ {claims[1]}}}", f"{value + 1} {noun}"],
    )


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        units,
        derived_units,
        temperatures,
        compounds,
        times,
        money,
        scale_words,
        percents,
        words_after,
    )
}
