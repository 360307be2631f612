"""Pairs whose answers are values: numbers, expressions, quantities, sets, words, labels. See verifier_pairs.py."""

import calendar
import math
from collections.abc import Iterator
from datetime import date, timedelta
from fractions import Fraction
from itertools import permutations
from random import Random

from verifier_pairs import Kind, Pair, both, boxed


def decimal(value: Fraction) -> str | None:
    """`value` as an exact decimal of at most 9 places, or None."""
    for places in range(10):
        if 10**places % value.denominator == 0:
            digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
            text = digits[: len(digits) - places] + ("." + digits[len(digits) - places :] if places else "")
            return ("-" if value < 0 else "") + text
    return None


def fraction(value: Fraction, command: str = r"\frac") -> str:
    sign = "-" if value < 0 else ""
    return rf"{sign}{command}{{{abs(value.numerator)}}}{{{value.denominator}}}"


def number(value: Fraction) -> str:
    return decimal(value) or fraction(value)


def signed(value: int) -> str:
    return f"+{value}" if value >= 0 else str(value)


# -- numbers and expressions


def numbers(rng: Random) -> Iterator[Pair]:
    """Fractions, decimals, thousands, powers of ten, mixed numbers."""
    value = Fraction(rng.randrange(-900, 900), rng.choice([1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 20, 25, 40]))
    right = [fraction(value), fraction(value, r"\dfrac"), f"{value.numerator}/{value.denominator}"]
    if value.denominator == 1:
        right = [str(value), f"{value}.0", f"+{value}" if value > 0 else str(value), f"{value}.", rf"\mathbf{{{value}}}"]
        big = value.numerator * 1000 + rng.randrange(1000)
        yield from both(
            rng, str(big), [f"{big:,}", rf"{big:,}".replace(",", r"\,"), f"{big:,}".replace(",", "{,}")],
            [f"{big + 1:,}", f"{big:,}0", str(big // 10)],
        )  # fmt: skip
        power = rng.randrange(3, 9)
        yield from both(
            rng, str(value * 10**power),
            [rf"{value} \times 10^{power}", rf"{value} \cdot 10^{{{power}}}", f"{value}e{power}", rf"{value}*10^{power}"],
            [rf"{value} \times 10^{power + 1}", rf"{value} \times 10^{{-{power}}}"] if value else [],
        )  # fmt: skip
    elif abs(value) > 1:
        whole, rest = divmod(abs(value.numerator), value.denominator)
        sign = "-" if value < 0 else ""
        right += [rf"{sign}{whole}\frac{{{rest}}}{{{value.denominator}}}", f"{sign}{whole} {rest}/{value.denominator}"]
    if written := decimal(value):
        right += [written, written + ("0" if "." in written else ".00")]
    wrong = [number(value + 1), number(-value - 1) if value != Fraction(-1, 2) else number(value + 2), number(value + Fraction(1, 10)), number(value * 10 + 1)]
    if value.numerator not in (0, value.denominator, -value.denominator) and value.denominator > 1:
        wrong += [fraction(1 / value), str(value.numerator)]
    yield from both(rng, number(value), right, wrong)


def minus_and_mixed(rng: Random) -> Iterator[Pair]:
    """A minus between an integer and a fraction subtracts."""
    whole, bottom = rng.randrange(1, 40), rng.randrange(2, 15)
    part = Fraction(rng.randrange(1, bottom), bottom)
    less, more = fraction(whole - part), fraction(whole + part)
    written, latex = f"{part.numerator}/{part.denominator}", fraction(part)
    yield from both(rng, less, [f"{whole}-{written}", f"{whole} - {latex}"], [f"{whole}{latex}", f"{whole} {written}"])
    yield from both(rng, more, [f"{whole}+{written}", f"{whole}{latex}"], [f"{whole}-{written}", rf"{whole} - {latex}"])
    yield from both(rng, fraction(-whole - part), [f"-{whole} {written}", f"-{whole}-{written}"], [f"-{whole}+{latex}"])


def surds(rng: Random) -> Iterator[Pair]:
    """Roots, by squares: a sqrt(b) is sqrt(a^2 b)."""
    a, b = rng.randrange(2, 20), rng.choice([2, 3, 5, 6, 7, 10, 11, 13, 15])
    c = rng.randrange(1, 30)
    yield from both(
        rng, rf"{a}\sqrt{{{b}}}", [rf"\sqrt{{{a * a * b}}}", rf"\frac{{{a * b}}}{{\sqrt{{{b}}}}}", rf"\sqrt{{{b}}}\cdot {a}"],
        [rf"\sqrt{{{a * b}}}", rf"{a}\sqrt[3]{{{b}}}", rf"{a + 1}\sqrt{{{b}}}", rf"{a}\sqrt{{{b + 1}}}", str(a * b)],
    )  # fmt: skip
    yield from both(
        rng, rf"{c}+{a}\sqrt{{{b}}}", [rf"{a}\sqrt{{{b}}}+{c}", rf"{c}+\sqrt{{{a * a * b}}}"],
        [rf"{c}-{a}\sqrt{{{b}}}", rf"{a}+{c}\sqrt{{{b}}}" if a != c else rf"{c + 1}+{a}\sqrt{{{b}}}", rf"({c}+{a})\sqrt{{{b}}}"],
    )  # fmt: skip
    yield from both(
        rng, rf"\frac{{1}}{{\sqrt{{{b}}}}}", [rf"\frac{{\sqrt{{{b}}}}}{{{b}}}", rf"{b}^{{-1/2}}", rf"\dfrac{{\sqrt{b}}}{{{b}}}" if b < 10 else rf"{b}^{{-\frac12}}"],
        [rf"\frac{{\sqrt{{{b}}}}}{{{b + 1}}}", rf"\sqrt{{{b}}}", rf"\frac{{1}}{{{b}}}"],
    )  # fmt: skip


def polynomials(rng: Random) -> Iterator[Pair]:
    """Products of linear factors, expanded with integers."""
    name = rng.choice("xyntaz")
    a, b, c = rng.randrange(1, 6), *rng.sample([n for n in range(-9, 10) if n], 2)
    # (a x + b)(x + c) = a x^2 + (ac + b) x + bc
    lead = "" if a == 1 else str(a)
    middle, last = a * c + b, b * c
    factored = f"({lead}{name}{signed(b)})({name}{signed(c)})"
    expanded = f"{lead}{name}^2{signed(middle)}{name}{signed(last)}" if middle else f"{lead}{name}^2{signed(last)}"
    other = f"{lead}{name}^2{signed(middle + 1)}{name}{signed(last)}"
    letter = "w" if name != "w" else "v"
    yield from both(
        rng, factored, [expanded, f"({name}{signed(c)})({lead}{name}{signed(b)})", f"{signed(last)}{signed(middle)}{name}+{a}{name}^2"],
        [other, f"({lead}{name}{signed(-b)})({name}{signed(c)})", expanded.replace(name, letter), str(a + b + c)],
    )  # fmt: skip
    yield from both(rng, expanded, [factored], [f"{lead}{name}^2{signed(middle)}{name}{signed(last - 1)}", f"{name}^3"])


def complex_numbers(rng: Random) -> Iterator[Pair]:
    a, b = rng.sample([n for n in range(-20, 21) if abs(n) > 1], 2)
    real = f"{a}{signed(b)}i"
    yield from both(
        rng, real, [f"{b}i{signed(a)}", f"{a}{signed(b)}*i", f"z = {real}", rf"{a} {signed(b)} \cdot i"],
        [f"{a}{signed(-b)}i", f"{b}{signed(a)}i", str(a), f"{a}{signed(b)}", f"{-a}{signed(b)}i"],
    )  # fmt: skip


def intervals(rng: Random) -> Iterator[Pair]:
    low, high = sorted(rng.sample(range(-30, 30), 2))
    left, right = rng.choice("(["), rng.choice(")]")
    sign = {"(": "<", ")": "<", "[": r"\le ", "]": r"\leq "}
    other = {"(": "[", "[": "("}[left]
    yield from both(
        rng, f"{left}{low}, {high}{right}",
        [f"{low} {sign[left]} x {sign[right]} {high}", f"x \\in {left}{low},{high}{right}", rf"\left{left}{low},{high}\right{right}"],
        [f"{other}{low},{high}{right}", f"{left}{low},{high + 1}{right}", f"{left}{low - 1},{high}{right}",
         f"{low} {sign['[' if left == '(' else '(']} x {sign[right]} {high}", f"x {sign[right]} {high}"],
    )  # fmt: skip
    strict = rng.random() < 0.5
    more, mirrored = (">", "<") if strict else (r"\ge ", r"\le ")
    yield from both(
        rng, f"x {more} {low}", [f"{low} {mirrored} x", rf"{'(' if strict else '['}{low}, \infty)", f"x{more}{low}.0"],
        [f"x {mirrored} {low}", f"x {more} {low + 1}", rf"{'[' if strict else '('}{low},\infty)", str(low), rf"(-\infty,{low})"],
    )  # fmt: skip


def sets_and_lists(rng: Random) -> Iterator[Pair]:
    """The order of several values means nothing, their number does."""
    values = [str(n) for n in rng.sample(range(-40, 90), rng.randrange(2, 5))]
    shuffled = rng.sample(values, len(values))
    more = str(max(map(int, values)) + 1)
    last = ", ".join(shuffled[:-1]) + rf"\text{{ and }}{shuffled[-1]}"
    yield from both(
        rng, ", ".join(values),
        [", ".join(shuffled), rf"\{{{', '.join(shuffled)}\}}", last, "; ".join(shuffled),
         r" \text{ or } ".join(f"x={v}" for v in shuffled)],
        [", ".join(values[:-1]), ", ".join([*values, more]), ", ".join([*values[:-1], more]), values[0]],
    )  # fmt: skip


def tuples(rng: Random) -> Iterator[Pair]:
    values = [str(n) for n in rng.sample(range(-40, 90), rng.randrange(2, 4))]
    swapped = rng.choice([order for order in permutations(values) if list(order) != values])
    text = ", ".join(values)
    names = "(x, y)" if len(values) == 2 else "(x, y, z)"
    wrong = [f"({', '.join(swapped)})", f"({text}, 1)", f"({', '.join(values[:-1])}, {int(values[-1]) + 1})"]
    yield from both(rng, f"({text})", [rf"\left({text}\right)", f"{names} = ({text})", f"({text.replace(' ', '')})"], wrong)


def matrices(rng: Random) -> Iterator[Pair]:
    rows, columns = rng.choice([(2, 2), (2, 3), (3, 2), (3, 1)])
    cells = [[rng.randrange(-9, 10) for _ in range(columns)] for _ in range(rows)]
    def write(values: list[list[int]], kind: str = "pmatrix") -> str:
        body = r" \\ ".join(" & ".join(map(str, row)) for row in values)
        return rf"\begin{{{kind}}} {body} \end{{{kind}}}"
    changed = [row[:] for row in cells]
    changed[rng.randrange(rows)][rng.randrange(columns)] += 1
    transposed = [list(column) for column in zip(*cells, strict=True)]
    wrong = [write(changed), write([*cells, cells[0]]), write([[-value for value in row] for row in cells])]
    if transposed != cells:
        wrong.append(write(transposed))
    wrong = [text for text in wrong if text != write(cells)]
    yield from both(rng, write(cells), [write(cells, "bmatrix"), write(cells).replace(" ", "").replace(r"\\", r" \\ ")], wrong)


def lines(rng: Random) -> Iterator[Pair]:
    """Equations of lines, and their multiples."""
    a, b, c = (rng.choice([n for n in range(-9, 10) if n]) for _ in range(3))
    k = rng.randrange(2, 6)
    def equation(a: int, b: int, c: int) -> str:
        return f"{a}x{signed(b)}y={c}"
    slope, height = Fraction(-a, b), Fraction(c, b)
    explicit = f"y = {fraction(slope)}x {'+' if height >= 0 else '-'} {fraction(abs(height))}"
    yield from both(
        rng, equation(a, b, c), [equation(k * a, k * b, k * c), equation(-a, -b, -c), explicit, f"{a}x{signed(b)}y{signed(-c)}=0"],
        [equation(a, b, c + 1), equation(a, -b, c), equation(a + 1 or 1, b, c) if a != -1 else equation(a - 1, b, c), "0=0", "x=x"],
    )  # fmt: skip


def identities(rng: Random) -> Iterator[Pair]:
    """A true equation is no other true equation."""
    n, m = rng.sample(range(2, 12), 2)
    a, b, c = rng.sample("abcdmnpqrstuxyz", 3)
    pool = [
        (f"({a}+{b})({a}+{n}{b})", f"{a}^2+{n + 1}{a}{b}+{n}{b}^2"),
        (f"({n}{a}-{b})^2", f"{n * n}{a}^2-{2 * n}{a}{b}+{b}^2"),
        (f"{n}({a}+{b}+{m}{c})", f"{n}{a}+{n}{b}+{n * m}{c}"),
        (f"({a}+{b})^3", f"{a}^3+3{a}^2{b}+3{a}{b}^2+{b}^3"),
        (f"{a}^3-{n**3}", f"({a}-{n})({a}^2+{n}{a}+{n * n})"),
        (rf"\tan {a}", rf"\frac{{\sin {a}}}{{\cos {a}}}"),
        (rf"1+\tan^2 {a}", rf"\frac{{1}}{{\cos^2 {a}}}"),
        (rf"\frac{{{a}^2-{n * n}}}{{{a}-{n}}}", f"{a}+{n}"),
    ]
    (left, right), (other_left, other_right) = rng.sample(pool, 2)
    yield from both(
        rng, f"{left}={right}", [f"{right}={left}", f"{left} = {right}"],
        [f"{other_left}={other_right}", "0=0", "1=1", f"{a}={a}", f"{n}+{m}={n + m}", f"{left}={left}", f"{right}={right}", f"{a}+{b}={b}+{a}"],
    )  # fmt: skip


# -- quantities

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
SPELLED = {"km": "kilometers", "cm": "centimetres", "kg": "kilograms", "g": "grams", "J": "joules", "W": "watts",
           "kW": "kilowatts", "N": "newtons", "Pa": "pascals", "V": "volts", "A": "amperes", "Hz": "hertz",
           "mol": "moles", "L": "litres", "mL": "milliliters", "C": "coulombs", "m": "meters", "mm": "millimeters"}  # fmt: skip


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
    wrong = [measured(rng, value, second), measured(rng, value, rng.choice(SI[other])[0]),
             measured(rng, converted * 10, second), measured(rng, value + 1, unit)]  # fmt: skip
    right = [measured(rng, value, unit), number(value)]
    if decimal(converted):
        right.append(measured(rng, converted, second))
    yield from both(rng, measured(rng, value, unit), right, wrong)


RATES = (("km/h", Fraction(5, 18)), ("m/s", Fraction(1)), ("km/s", Fraction(1000)), ("cm/s", Fraction(1, 100)))
DENSITIES = (("g/cm^3", Fraction(1000)), ("kg/m^3", Fraction(1)), ("kg/L", Fraction(1000)))
AREAS = (("mm^2", Fraction(1, 10**6)), ("cm^2", Fraction(1, 10**4)), ("m^2", Fraction(1)), ("km^2", Fraction(10**6)), ("ha", Fraction(10**4)))
VOLUMES = (("cm^3", Fraction(1, 10**6)), ("m^3", Fraction(1)), ("L", Fraction(1, 1000)), ("mL", Fraction(1, 10**6)), ("dm^3", Fraction(1, 1000)))
CUSTOMARY = (("in", Fraction(127, 5000)), ("ft", Fraction(381, 1250)), ("yd", Fraction(1143, 1250)), ("mi", Fraction(201168, 125)))
DURATIONS = (("s", Fraction(1)), ("min", Fraction(60)), ("h", Fraction(3600)), ("days", Fraction(86400)), ("weeks", Fraction(604800)))


def with_power(value: Fraction, unit: str, rng: Random) -> str:
    base, _, power = unit.partition("^")
    if power:
        return number(value) + rng.choice([rf"\text{{ {base}}}^{power}", rf"\,\mathrm{{{base}^{power}}}", rf"\text{{ {base}}}^{{{power}}}"])
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
    wrong = [rf"{scales[first]}^\circ\text{{{second}}}", rf"{int(scales[first]) + 1}^\circ\text{{{first}}}", rf"{scales[first]}\text{{ K}}"]
    if celsius == fahrenheit:
        wrong = wrong[1:]
    yield from both(
        rng, rf"{scales[first]}^\circ\text{{{first}}}",
        [rf"{scales[second]}^\circ \mathrm{{{second}}}", rf"{scales[second]}°{second}", rf"{kelvin}\text{{ K}}",
         rf"{scales[first]} \text{{ degrees {'Celsius' if first == 'C' else 'Fahrenheit'}}}"], wrong,
    )  # fmt: skip


def compounds(rng: Random) -> Iterator[Pair]:
    """Quantities in two units."""
    large, small, ratio = rng.choice(
        [("hours", "minutes", 60), ("minutes", "seconds", 60), ("feet", "inches", 12), ("pounds", "ounces", 16),
         ("days", "hours", 24), ("weeks", "days", 7), ("m", "cm", 100), ("km", "m", 1000), ("kg", "g", 1000),
         ("years", "months", 12)]
    )  # fmt: skip
    first, second = rng.randrange(1, 40), rng.randrange(1, ratio)
    total = first * ratio + second
    wrong = [f"{first} {large} {second % (ratio - 1) + 1} {small}" if second % (ratio - 1) + 1 != second else f"{first} {large}",
             f"{first + 1} {large} {second} {small}", f"{total + 1} {small}", f"{first} {large}", f"{total} {large}"]  # fmt: skip
    yield from both(
        rng, f"{first} {large} {second} {small}",
        [f"{total} {small}", f"{first} {large} and {second} {small}", rf"{first}\text{{ {large} }}{second}\text{{ {small}}}",
         rf"{total}\text{{ {small}}}"], wrong,
    )  # fmt: skip
    yield from both(rng, rf"{total}\text{{ {small}}}", [f"{first} {large} {second} {small}"], [f"{first} {large} {second + 1} {small}"])


def times(rng: Random) -> Iterator[Pair]:
    hour, minute = rng.randrange(0, 24), rng.randrange(60)
    twelve, half = (hour % 12 or 12), ("a.m." if hour < 12 else "p.m.")
    other_half = "p.m." if half == "a.m." else "a.m."
    later = (minute + rng.randrange(1, 59)) % 60
    upper = half.replace(".", "").upper()
    yield from both(
        rng, rf"{twelve}:{minute:02}\text{{ {half}}}",
        [f"{twelve}:{minute:02} {upper}", f"{twelve}:{minute:02}{upper}", f"{hour:02}:{minute:02}" if hour > 12 else f"{twelve}:{minute:02} {half}",
         rf"{twelve}\!:\!{minute:02} \text{{ {upper}}}"],
        [f"{twelve}:{minute:02} {other_half}", f"{twelve}:{later:02} {half}", f"{(twelve % 12) + 1}:{minute:02} {half}"],
    )  # fmt: skip


def money(rng: Random) -> Iterator[Pair]:
    cents = rng.randrange(150, 900000)
    value = decimal(Fraction(cents, 100))
    assert value is not None
    padded = f"{cents // 100}.{cents % 100:02}"
    other = rng.choice(["€", "£", "¥", "₹"])
    yield from both(
        rng, rf"\${padded}", [value, f"{padded} dollars", rf"\${cents // 100:,}.{cents % 100:02}", rf"{cents}\text{{ cents}}", f"USD {padded}"],
        [f"{other}{padded}", rf"\${cents}", f"{padded} cents", rf"\${decimal(Fraction(cents + 1, 100))}", f"{padded} euros"],
    )  # fmt: skip


SCALES = (("hundred", 10**2), ("thousand", 10**3), ("million", 10**6), ("billion", 10**9), ("trillion", 10**12), ("lakh", 10**5), ("crore", 10**7), ("dozen", 12))


def scale_words(rng: Random) -> Iterator[Pair]:
    (word, scale), (other, other_scale) = rng.sample(SCALES, 2)
    value = Fraction(rng.randrange(1, 900), rng.choice([1, 1, 2, 4, 5, 10]))
    whole = value * scale
    yield from both(
        rng, number(whole), [f"{number(value)} {word}", rf"{number(value)}\text{{ {word}}}", number(whole)],
        [f"{number(value)} {other}", f"{number(value + 1)} {word}", number(value)],
    )  # fmt: skip
    yield from both(rng, f"{number(value)} {word}", [number(whole)], [number(value), number(whole * 10), number(value * other_scale)])


def percents(rng: Random) -> Iterator[Pair]:
    hundredths = rng.randrange(2, 400)
    value = Fraction(hundredths, 100)
    yield from both(
        rng, rf"{hundredths}\%", [str(hundredths), f"{hundredths}%", f"{hundredths} percent", rf"{hundredths}\text{{ percent}}", number(value), fraction(value)],
        [rf"{hundredths + 1}\%", rf"{decimal(value)}\%" if hundredths < 100 else f"{hundredths + 2}%", number(value / 100), rf"{hundredths * 100}\%"],
    )  # fmt: skip
    if hundredths % 100:
        yield from both(rng, number(value), [rf"{hundredths}\%"], [rf"{hundredths * 10}\%", rf"{hundredths + 1}\%"])


NOUNS = (
    "apples", "ways", "students", "marbles", "cookies", "cars", "pages", "square units", "people", "tickets", "trees",
    "books per shelf", "boxes of pencils", "chairs", "miles", "points", "stamps", "triangles", "pairs of socks",
    "edges", "vertices", "coins", "girls", "bottles", "roses", "games", "cats",
)  # fmt: skip
CLAIMS = (
    "is wrong", "is not correct", "would be too many", "or so", "or less", "or more", "and counting", "at least",
    "at most", "does not satisfy the equation", "is an upper bound", "plus some", "minus one", "times as many",
    "percent of them", "squared", "cubed", "factorial", "to the fifth power", "thirds", "eighths", "less than y",
    "more than n", "choose two", "if n is even", "unless x is zero", "in base seven", "mod eleven", "below zero",
    "times x", "over nine", "divided by two", "and a bit", "except one", "for some x", "is impossible", "but not zero",
    "or six", "and seven", "to eight", "is my guess", "maybe", "probably not",
)  # fmt: skip


def words_after(rng: Random) -> Iterator[Pair]:
    """Words after a number: things that are counted, or a claim about it."""
    value = rng.randrange(2, 2000)
    noun = rng.choice(NOUNS)
    claims = rng.sample(CLAIMS, 2)
    yield from both(
        rng, str(value), [f"{value} {noun}", rf"{value}\text{{ {noun}}}", rf"{value} \text{{{noun}}}"],
        [f"{value} {claims[0]}", rf"{value}\text{{ {claims[1]}}}", f"{value + 1} {noun}"],
    )  # fmt: skip


# -- letters, labels, words


def letter_orders(rng: Random) -> Iterator[Pair]:
    """Words, codons, results of coins and races: an order."""
    alphabet = rng.choice(["ACGT", "ACGU", "HT", "ABCDEF", "NESW", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "WL", "PQRS"])
    letters = [rng.choice(alphabet) for _ in range(rng.randrange(3, 8))]
    shuffled = rng.sample(letters, len(letters))
    word, other = "".join(letters), "".join(shuffled)
    changed = word[:-1] + rng.choice([letter for letter in "ABHTGNZ" if letter != word[-1]])
    wrong = [changed, word[:-1], *([other, rf"\text{{{other}}}"] if other != word else [])]
    yield from both(rng, word, [rf"\text{{{word}}}", rf"\mathrm{{{word}}}", " ".join(word)], wrong)


def labels(rng: Random) -> Iterator[Pair]:
    """Seats, squares, plates, points."""
    letter, digit = rng.choice("ABCDEFGHJKLMQRSTU"), rng.randrange(2, 99)
    label = rng.choice([f"{letter}{digit}", f"{digit}{letter}"])
    turned = f"{digit}{letter}" if label[0] == letter else f"{letter}{digit}"
    following = label.replace(str(digit), str(digit + 1))
    yield from both(rng, label, [rf"\text{{{label}}}", rf"\mathrm{{{label}}}"], [turned, following, str(digit)])


def figures(rng: Random) -> Iterator[Pair]:
    """Angles, triangles, segments: the middle letter, the order of the letters."""
    a, b, c, d, e, f = rng.sample("ABCDEFGHKMPQXYZ", 6)
    if rng.random() < 0.5:
        yield from both(
            rng, rf"\angle {a}{b}{c}", [rf"\angle {c}{b}{a}", rf"\angle {{{a}{b}{c}}}", f"∠{a}{b}{c}", rf"\angle {{ {c}{b}{a} }}"],
            [rf"\angle {b}{a}{c}", rf"\angle {a}{c}{b}", rf"\angle {a}{b}{d}", rf"\angle {c}{a}{b}"],
        )  # fmt: skip
        yield from both(rng, f"{a}{b}", [f"{b}{a}"], [f"{a}{c}", f"{b}{d}"])
        return
    sign = rng.choice([r"\sim", r"\cong"])
    other = r"\cong" if sign == r"\sim" else r"\sim"
    yield from both(
        rng, rf"\triangle {a}{b}{c} {sign} \triangle {d}{e}{f}",
        [rf"\triangle {c}{a}{b} {sign} \triangle {f}{d}{e}", rf"\triangle {d}{e}{f} {sign} \triangle {a}{b}{c}"],
        [rf"\triangle {a}{b}{c} {sign} \triangle {d}{f}{e}", rf"\triangle {a}{c}{b} {sign} \triangle {d}{e}{f}",
         rf"\triangle {a}{b}{d} {sign} \triangle {c}{e}{f}", rf"\triangle {a}{b}{c} {other} \triangle {d}{e}{f}"],
    )  # fmt: skip


def matrix_products(rng: Random) -> Iterator[Pair]:
    a, b, c = rng.sample("ABCDPQRSUVX", 3)
    mark = rng.choice(["{-1}", "T", "{T}"])
    product = f"{c}^{mark}{b}^{mark}{a}^{mark}"
    yield from both(
        rng, product, [f"({a}{b}{c})^{mark}", rf"{c}^{mark} \cdot {b}^{mark} \cdot {a}^{mark}", f"{c}^{mark}({a}{b})^{mark}"],
        [f"{a}^{mark}{b}^{mark}{c}^{mark}", f"({c}{b}{a})^{mark}", f"{b}^{mark}{c}^{mark}{a}^{mark}", f"{a}{b}{c}"],
    )  # fmt: skip
    yield from both(rng, f"{a}{b}-{b}{a}", [f"-{b}{a}+{a}{b}"], [f"{b}{a}-{a}{b}", "0", f"{a}{b}+{b}{a}"])


def dates(rng: Random) -> Iterator[Pair]:
    day = date(1850, 1, 1) + timedelta(rng.randrange(90000))
    other = day + timedelta(rng.randrange(1, 300))
    def spellings(day: date) -> list[str]:
        month = calendar.month_name[day.month]
        return [f"{day:%Y-%m-%d}", f"{month} {day.day}, {day.year}", f"{day.day} {month} {day.year}", f"{day:%Y/%m/%d}",
                rf"\text{{{month} {day.day}, {day.year}}}"]  # fmt: skip
    reference = rng.choice(spellings(day))
    wrong = [rng.choice(spellings(other)), str(day.year - day.month - day.day), str(day.year)]
    yield from both(rng, reference, spellings(day), wrong)


def hyphens(rng: Random) -> Iterator[Pair]:
    """Scores, ranges of years, telephones, plates: no subtraction."""
    a, b = rng.sample(range(2, 90), 2)
    year = rng.randrange(1500, 2020)
    phone = [str(rng.randrange(100, 1000)), str(rng.randrange(100, 1000)), str(rng.randrange(1000, 10000))]
    plate = "".join(rng.choice("ABCDEFGHKLM") for _ in range(3))
    yield from both(rng, f"{a}-{b}", [f"{a} - {b}", rf"\text{{{a}-{b}}}"], [str(a - b), f"{b}-{a}", str(a), f"{a}-{b + 1}"])
    yield from both(rng, f"{year}-{year + a}", [f"{year} - {year + a}"], [str(-a), f"{year}-{year + a + 1}", str(year)])
    yield from both(rng, "-".join(phone), [rf"\text{{{'-'.join(phone)}}}"], [str(int(phone[0]) - int(phone[1]) - int(phone[2])), "-".join(reversed(phone))])
    yield from both(rng, f"{plate}-{year}", [rf"\text{{{plate}-{year}}}"], [f"{plate}-{year + 1}", f"{plate[::-1]}-{year}" if plate != plate[::-1] else str(year)])


def names(rng: Random) -> Iterator[Pair]:
    """Values with their names."""
    letters = rng.choice(["xy", "ab", "mn", "pq", "uv", "xyz", "abc", "rst"])
    values = rng.sample(range(-60, 90), len(letters))
    order = list(range(len(letters)))
    while order == sorted(order):
        rng.shuffle(order)
    swapped = [values[place] for place in order]
    def assigned(values: list[int], joint: str = ", ") -> str:
        return joint.join(f"{name}={value}" for name, value in zip(letters, values, strict=True))
    moved = ", ".join(f"{letters[place]} = {values[place]}" for place in order)
    yield from both(
        rng, assigned(values), [f"({', '.join(map(str, values))})", moved, assigned(values, r"\text{ and }" if len(letters) == 2 else "; ")],
        [", ".join(map(str, swapped)), assigned(swapped), f"({', '.join(map(str, swapped))})", assigned(values[:-1] + [values[-1] + 1])],
    )  # fmt: skip


def logic(rng: Random) -> Iterator[Pair]:
    """And is not or: De Morgan's laws, contraposition."""
    p, q = rng.sample("pqrst", 2)
    cases = (
        (rf"{p} \land {q}", [rf"{q} \land {p}", rf"\neg(\neg {p} \lor \neg {q})"], [rf"{p} \lor {q}", rf"{p} \to {q}", p]),
        (rf"{p} \lor {q}", [rf"{q} \lor {p}", rf"\neg {p} \to {q}", rf"{q} \vee {p}"], [rf"{p} \land {q}", rf"{p} \lor \neg {q}", q]),
        (rf"{p} \to {q}", [rf"\neg {q} \to \neg {p}", rf"\neg {p} \lor {q}", rf"{p} \Rightarrow {q}"], [rf"{q} \to {p}", rf"\neg {p} \to \neg {q}", rf"{p} \leftrightarrow {q}"]),
        (rf"\neg({p} \land {q})", [rf"\neg {p} \lor \neg {q}"], [rf"\neg {p} \land \neg {q}", rf"{p} \lor {q}", rf"\neg {p} \land {q}"]),
        (rf"\neg({p} \lor {q})", [rf"\neg {p} \land \neg {q}"], [rf"\neg {p} \lor \neg {q}", rf"\neg {p} \lor {q}"]),
        (rf"{p} \land (\neg {q} \lor {p})", [p + r" \land " + p], [q, rf"{p} \land {q}"]),
    )  # fmt: skip
    yield from both(rng, *rng.choice(cases))
    a, b, c = rng.sample("ABCDEMNST", 3)
    cases = (
        (rf"{a} \cup {b}", [rf"{b} \cup {a}"], [rf"{a} \cap {b}", rf"{a} \cup {c}", a]),
        (rf"{a} \cap {b}", [rf"{b} \cap {a}"], [rf"{a} \cup {b}", rf"{c} \cap {b}", b]),
        (rf"{a} \cap ({b} \cup {c})", [rf"({a} \cap {b}) \cup ({a} \cap {c})"], [rf"{a} \cup ({b} \cap {c})", rf"({a} \cap {b}) \cup {c}"]),
    )  # fmt: skip
    yield from both(rng, *rng.choice(cases))


def ratios(rng: Random) -> Iterator[Pair]:
    a, b = rng.sample(range(1, 40), 2)
    common = math.gcd(a, b)
    a, b, k = a // common, b // common, rng.randrange(2, 7)
    first, second = rng.sample(["V_1", "V_2", "AB", "CD", "x", "y", "S_1", "S_2", "a", "b"], 2)
    yield from both(
        rng, f"{first}:{second}={a}:{b}", [f"{a}:{b}", f"{second}:{first}={b}:{a}", f"{first} : {second} = {a} : {b}", rf"{a} : {b}"],
        [f"{b}:{a}", f"{first}:{second}={b}:{a}", f"{a}:{b + 1}", f"{a}{b}"],
    )  # fmt: skip
    yield from both(rng, f"{a}:{b}", [rf"\frac{{{a}}}{{{b}}}", f"{a} to {b}", f"{a}/{b}"] + ([f"{k * a}:{k * b}"] if max(a, b) > 6 and b < 10 and k * b < 10 else []),
                    [f"{b}:{a}", f"{a + 1}:{b}", rf"\frac{{{b}}}{{{a}}}"])  # fmt: skip


# -- what is no answer


def operations_left(rng: Random) -> Iterator[Pair]:
    """The question restated, where the reference is its result."""
    n, m, k = rng.randrange(3, 40), rng.randrange(3, 40), rng.randrange(2, 6)
    low, high = sorted(rng.sample(range(-9, 10), 2))
    cases = (
        (str(math.gcd(n * k, m * k)), [str(math.gcd(n * k, m * k))], [rf"\gcd({n * k}, {m * k})", rf"\mathrm{{gcd}}({n * k},{m * k})", f"gcd({n * k},{m * k})"]),
        (str(math.lcm(n, m)), [f"{math.lcm(n, m)}.0"], [rf"\operatorname{{lcm}}({n},{m})", f"lcm({n}, {m})", rf"\text{{lcm}}({n}, {m})"]),
        (str(sum(i * i for i in range(1, n + 1))), [str(n * (n + 1) * (2 * n + 1) // 6)], [rf"\sum_{{i=1}}^{{{n}}} i^2", rf"\sum_{{k=1}}^{n} k^2"]),
        (fraction(Fraction(1, k + 1)), [f"1/{k + 1}"], [rf"\int_0^1 x^{k}\,dx", rf"\int_{{0}}^{{1}} x^{{{k}}} dx"]),
        (str(2 * n), [f"{n * 2}"], [rf"\lim_{{x \to {n}}} \frac{{x^2-{n * n}}}{{x-{n}}}", rf"\lim_{{x\to 0}} \frac{{\sin {2 * n}x}}{{x}}"]),
        (str(n**k % m), [str(n**k % m)], [rf"{n}^{k} \bmod {m}", rf"{n}^{k} \mod {m}"]),
        (f"({low}, {high})", [f"{low} < x < {high}"], [f"x^2{signed(-low - high)}x{signed(low * high)} < 0", f"(x{signed(-low)})(x{signed(-high)})<0"]),
        (f"({n}, {m})", [f"x={n}, y={m}"], [rf"\begin{{cases}} x+y={n + m} \\ x-y={n - m} \end{{cases}}", f"x+y={n + m}, x-y={n - m}"]),
        (str(max(n, m)), [str(max(n, m))], [rf"\max({n}, {m})", rf"\max\{{{n},{m}\}}"]),
        (str(n * m - k), [str(n * m - k)], [rf"\begin{{vmatrix}} {n} & {k} \\ 1 & {m} \end{{vmatrix}}", rf"\det \begin{{pmatrix}} {n} & {k} \\ 1 & {m} \end{{pmatrix}}"]),
        (f"{k * n}x^{{{n - 1}}}", [f"{k * n}x^{{{n - 1}}}"], [rf"\frac{{d}}{{dx}} {k}x^{{{n}}}", rf"\frac{{d}}{{dx}}\left({k}x^{{{n}}}\right)"]),
        (str(math.factorial(k + 2)), [f"{k + 2}!"], [rf"\prod_{{i=1}}^{{{k + 2}}} i"]),
        (f"x > {n}", [f"{n} < x", rf"({n}, \infty)"], [f"{k + 1}x - {n} > {k}x", f"x^3 > {n**3}"]),
        (str(n), [f"x={n}", str(n)], [f"{k}x={k * n}", f"x+{m}={n + m}", f"x-{m}={n - m}"]),
    )  # fmt: skip
    yield from both(rng, *rng.choice(cases))


def sizes(rng: Random) -> Iterator[Pair]:
    """Values that are too large to compute are no small ones."""
    value, base, top = rng.randrange(-50, 999), rng.randrange(2, 20), rng.randrange(5, 12)
    huge = rf"{base}^{{{top}^{{{top}}}}}"
    yield from both(
        rng, str(value), [str(value)],
        [huge, f"-{huge}", f"{huge}+{value}", rf"\frac{{1}}{{{huge}}}", f"{top * 100}!", rf"10^{{{top * 1000}}}", rf"{value + 1}^{{{top * 900}}}" if value > 1 else huge],
    )  # fmt: skip
    n = rng.randrange(20, 400)
    yield from both(rng, f"{base}^{{{n}}}", [rf"{base} \cdot {base}^{{{n - 1}}}", rf"{base**2}^{{{n}/2}}"], [f"{base}^{{{n + 1}}}", f"{base + 1}^{{{n}}}", str(n)])


def same_text_only(rng: Random) -> Iterator[Pair]:
    """References that are no mathematics: every other text is wrong, not without a verdict."""
    pool = ["甲", "乙", "丙", "丁", "充分不必要条件", "必要不充分条件", "增大", "减小", r"\spadesuit", r"a \perp b", r"a \parallel b", "①②", "②③", "①③④", "先增大后减小", r"l \perp \alpha"]
    first, second = rng.sample(pool, 2)
    yield from both(rng, first, [first, f" {first} "], [second, str(rng.randrange(99)), rf"\text{{{rng.choice(['yes', 'north', 'prime'])}}}"])


def congruences(rng: Random) -> Iterator[Pair]:
    modulus = rng.randrange(3, 60)
    residue = rng.randrange(modulus)
    name = rng.choice("xna")
    yield from both(
        rng, rf"{name} \equiv {residue} \pmod{{{modulus}}}",
        [rf"{name}\equiv {residue + modulus} \pmod{{{modulus}}}", rf"{name} \equiv {residue - modulus} \pmod {{{modulus}}}", rf"{residue} \pmod{{{modulus}}}"],
        [rf"{name} \equiv {residue + 1} \pmod{{{modulus}}}", rf"{name} \equiv {residue} \pmod{{{modulus + 1}}}", str(residue), f"{name} = {residue}"],
    )  # fmt: skip


def bound_names(rng: Random) -> Iterator[Pair]:
    """Constants of integration and integer parameters: their name means nothing."""
    n, m = rng.randrange(2, 12), rng.randrange(2, 12)
    constant = rng.choice("cCkK")
    yield from both(
        rng, rf"{m}x^{{{n}}} + \sin x + C", [rf"{m}x^{{{n}}}+\sin x+{constant}", rf"\sin x + {m}x^{{{n}}} + {constant}"],
        [rf"{m}x^{{{n}}}+\sin x", rf"{m}x^{{{n}}}+\cos x+C", rf"{m + 1}x^{{{n}}}+\sin x+C", rf"{m}x^{{{n}}}+{constant}\sin x"],
    )  # fmt: skip
    first, second = rng.sample("knm", 2)
    yield from both(
        rng, rf"x = \frac{{\pi}}{{{n}}} + {m}{first}\pi, {first} \in \mathbb{{Z}}",
        [rf"x=\frac{{\pi}}{{{n}}}+{m}{second}\pi, {second}\in\mathbb{{Z}}", rf"\frac{{\pi}}{{{n}}} + {m}{second}\pi, {second} \in \mathbb{{Z}}"],
        [rf"x=\frac{{\pi}}{{{n + 1}}}+{m}{second}\pi, {second}\in\mathbb{{Z}}", rf"x=\frac{{\pi}}{{{n}}}+{m + 1}{second}\pi, {second}\in\mathbb{{Z}}", rf"\frac{{\pi}}{{{n}}}"],
    )  # fmt: skip


def latex_forms(rng: Random) -> Iterator[Pair]:
    """Sloppy LaTeX with one meaning."""
    a, b, c = rng.randrange(1, 10), rng.randrange(2, 10), rng.randrange(11, 99)
    big = rng.randrange(1000, 999999)
    cases = (
        (fraction(Fraction(a, b)), [rf"\frac{a}{b}", rf"\frac {a}{{{b}}}", rf"\tfrac{{{a}}}{{{b}}}", rf"\cfrac{{{a}}}{{{b}}}", f"\x0crac{{{a}}}{{{b}}}", rf"{{{a}\over {b}}}"], [rf"\frac{{{a + 1}}}{{{b}}}"]),
        (str(big), [f"{big // 1000},\\! {big % 1000:03}", rf"{{\bf {big}}}", rf"\textbf{{{big}}}", rf"\textnormal{{{big}}}", rf"\therefore {big}", rf"\mathbf{{{big}}}", rf"{big}\\", rf"{big}\;"], [rf"\textbf{{{big + 1}}}", rf"{{\bf {big - 1}}}"]),
        (str(math.comb(max(a, b), min(a, b))), [rf"\binom{max(a, b)}{min(a, b)}", rf"\binom{{{max(a, b)}}}{{{min(a, b)}}}", rf"{{{max(a, b)}\choose {min(a, b)}}}"], [rf"\binom{{{max(a, b) + 2}}}{{{min(a, b)}}}"]),
        (rf"\sqrt{{{c}}}", [rf"\sqrt {{{c}}}", rf"\sqrt({c})", f"sqrt({c})", rf"\sqrt{{{{{c}}}}}"], [rf"\sqrt{{{c + 1}}}"]),
        (f"x={c}", [rf"\therefore x={c}", rf"\Rightarrow x = {c}", rf"x = \mathbf{{{c}}}", f"{c}"], [rf"\therefore x={c + 1}", f"y={c}"]),
        (rf"{c}\text{{ meters}}", [rf"{c}\textbf{{ meters}}", rf"{c}\ \textnormal{{meters}}", rf"{c}~\mathrm{{m}}", rf"{c}\textrm{{ m}}"], [rf"{c + 1}\textbf{{ meters}}"]),
        (rf"{c}^\circ", [rf"{c}^{{\circ}}", f"{c}°", rf"{c}\degree", f"{c} degrees", str(c)], [rf"{c + 1}^\circ"]),
        (rf"\frac{{{a}\pi}}{{{b}}}", [rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}", rf"\dfrac{{{a} \pi}}{{{b}}}", f"{a}π/{b}"], [rf"\frac{{{a}}}{{{b}\pi}}", rf"\frac{{{a}}}{{{b}}}"]),
    )  # fmt: skip
    yield from both(rng, *rng.choice(cases))


def hidden_characters(rng: Random) -> Iterator[Pair]:
    """Control characters in a number."""
    value = str(rng.randrange(10, 99999))
    place = rng.randrange(1, len(value))
    mark = rng.choice(["\x00", "\x01", "\x1b", "\u202e", "\x7f", "\U000e0041"])
    yield Pair(boxed(rng, value), value, True)
    yield Pair(boxed(rng, value[:place] + "\u200b" + value[place:]), value, True)
    yield Pair(boxed(rng, value[:place] + mark + value[place:]), value, False)
    yield Pair(boxed(rng, value[:place] + mark + " " + value[place:]), value, False)


def signs_outside(rng: Random) -> Iterator[Pair]:
    """A sign or factor before the box belongs to it."""
    value = rng.randrange(2, 2000)
    name = rng.choice(["x", "y", "k", "f(2)", "a_1", r"\cos A"])
    yield Pair(rf"So ${name}=-\boxed{{{value}}}$.", str(-value), True)
    yield Pair(rf"So ${name} = - \boxed{{{value}}}$", str(value), False)
    yield Pair(rf"So ${name}=\boxed{{{value}}}$.", str(value), True)
    yield Pair(rf"So ${name}=\boxed{{-{value}}}$.", str(-value), True)
    yield Pair(rf"So ${name}=\boxed{{{value}}}$.", str(-value), False)
    yield Pair(rf"We get $-\boxed{{{value}}}$.", str(value), False)


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        *(numbers, minus_and_mixed, surds, polynomials, complex_numbers, intervals, sets_and_lists, tuples, matrices),
        *(lines, identities, units, derived_units, temperatures, compounds, times, money, scale_words, percents),
        *(words_after, letter_orders, labels, figures, matrix_products, dates, hyphens, names, logic, ratios),
        *(operations_left, sizes, same_text_only, congruences, bound_names, latex_forms, hidden_characters),
        *(signs_outside,),
    )
}
