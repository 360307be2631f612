"""Answers that equal a reference, and answers that do not, by construction: units, dates, orders of letters, ...

Nothing here is shared with the verifier. Each function of `KINDS` draws one reference with its answers.
"""

import calendar
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from random import Random


@dataclass(frozen=True)
class Neighbours:
    """reference: the right answer. paid: answers that are equal to it. refused: answers that are not."""

    reference: str
    paid: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


# Sizes by the definitions of the units: (spellings, size), of one dimension a group.
UNITS: tuple[tuple[tuple[str, Fraction], ...], ...] = (
    tuple((unit, Fraction(size)) for unit, size in (("mm", "0.001"), ("cm", "0.01"), ("m", "1"), ("km", "1000"))),
    tuple((unit, Fraction(size)) for unit, size in (("inches", "0.0254"), ("feet", "0.3048"), ("yards", "0.9144"))),
    tuple((unit, Fraction(size)) for unit, size in (("mg", "0.001"), ("g", "1"), ("kg", "1000"))),
    tuple((unit, Fraction(size)) for unit, size in (("seconds", "1"), ("minutes", "60"), ("hours", "3600"))),
    tuple((unit, Fraction(size)) for unit, size in (("mJ", "0.001"), ("J", "1"), ("kJ", "1000"), ("MJ", "1000000"))),
    tuple((unit, Fraction(size)) for unit, size in (("mV", "0.001"), ("V", "1"), ("kV", "1000"))),
    tuple((unit, Fraction(size)) for unit, size in (("mW", "0.001"), ("W", "1"), ("MW", "1000000"))),
    tuple((unit, Fraction(size)) for unit, size in (("Pa", "1"), ("kPa", "1000"), ("bar", "100000"))),
    tuple((unit, Fraction(size)) for unit, size in (("mL", "0.001"), ("L", "1"), ("cm^3", "0.001"), ("dm^3", "1"))),
    tuple((unit, Fraction(size)) for unit, size in (("cm^2", "0.0001"), ("m^2", "1"), ("km^2", "1000000"))),
    tuple((unit, Fraction(size)) for unit, size in (("nm", "1/1000000000"), ("pm", "1/1000000000000"))),
    tuple((unit, Fraction(size)) for unit, size in (("m/s", "1"), ("km/h", "5/18"))),
    tuple((unit, Fraction(size)) for unit, size in (("eV", "1"), ("keV", "1000"), ("MeV", "1000000"))),
)


def spell(value: Fraction) -> str:
    """`value` as a decimal if it has a short one, else as a fraction."""
    places = next((places for places in range(9) if 10**places % value.denominator == 0), None)
    if places is None:
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return f"{value.numerator * 10**places // value.denominator / 10**places:.{places}f}" if places else str(value)


def with_unit(value: Fraction, unit: str, rng: Random) -> str:
    name, power, exponent = unit.partition("^")
    written = rf"\text{{ {name}}}" + power + exponent
    return spell(value) + (written if rng.random() < 0.7 or len(name) < 3 else f" {unit}")


def units(rng: Random) -> Neighbours:
    """Prefixes and dimensions: 5 kJ is 5000 J, and neither 5 J nor 5 W."""
    group, other = rng.sample(UNITS, 2)
    (unit, size), (second, second_size) = rng.sample(group, 2)
    value = Fraction(rng.randrange(1, 400))
    refused = [with_unit(value, second, rng)] if size != second_size else []
    return Neighbours(
        with_unit(value, unit, rng),
        (with_unit(value, unit, rng), with_unit(value * size / second_size, second, rng)),
        (*refused, with_unit(value + 1, unit, rng))
        + ((with_unit(value, other[0][0], rng),) if apart(group, other) else ()),
    )


def apart(first: object, second: object) -> bool:
    """Whether two groups of UNITS measure different things: some groups measure lengths or energies both."""
    lengths, energies = (UNITS[0], UNITS[1], UNITS[10]), (UNITS[4], UNITS[12])
    return not any(first in same and second in same for same in (lengths, energies))


def temperatures(rng: Random) -> Neighbours:
    """Scales with another zero: 25 °C is 77 °F."""
    celsius = 5 * rng.randrange(1, 40)
    fahrenheit = celsius * 9 // 5 + 32
    return Neighbours(
        rf"{celsius}^\circ\text{{C}}",
        (rf"{fahrenheit}^\circ\text{{F}}", f"{fahrenheit} °F", f"{celsius}°C"),
        (rf"{celsius}^\circ\text{{F}}", rf"{fahrenheit}^\circ\text{{C}}", rf"{celsius}\text{{ K}}"),
    )


def compound_quantities(rng: Random) -> Neighbours:
    """Quantities in two units: 2 hours 15 minutes is 135 minutes."""
    large, small, ratio = rng.choice(
        [("hours", "minutes", 60), ("feet", "inches", 12), ("m", "cm", 100), ("kg", "g", 1000)]
    )
    first, second = rng.randrange(2, 30), rng.randrange(1, ratio)
    reference = rng.choice(
        [f"{first} {large} {second} {small}", rf"{first}\text{{ {large} }}{second}\text{{ {small}}}"]
    )
    return Neighbours(
        reference,
        (f"{first * ratio + second} {small}", rf"{first}\text{{ {large} and }}{second}\text{{ {small}}}"),
        (f"{first} {large} {second + 1} {small}", f"{first * ratio + second}")
        + ((f"{first} {small} {second} {large}",) if first != second else ())
        + (
            (f"{first}.{second} {large}",)
            if ratio in (12, 60) and Fraction(second, 10 ** len(str(second))) != Fraction(second, ratio)
            else ()
        ),
    )


def currencies(rng: Random) -> Neighbours:
    """Money: $5 is 500 cents, and not €5."""
    value = rng.randrange(2, 900)
    names = {"\\$": "dollars", "€": "euros", "£": "pounds", "₹": "rupees"}
    sign, other = rng.sample(sorted(names), 2)
    cents = (rf"{100 * value}\text{{ cents}}",) if sign == "\\$" else ()
    spelled = (f"{value} {names[sign]}",) if sign != "£" else ()
    return Neighbours(f"{sign}{value}", (str(value), *spelled, *cents), (f"{other}{value}", f"{sign}{value + 1}"))


SCALES = {
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "lakh": Fraction(10**5),
    "crore": Fraction(10**7),
    "dozen": Fraction(12),
    "hundredths": Fraction(1, 100),
    "tenths": Fraction(1, 10),
    "halves": Fraction(1, 2),
}


def scale_words(rng: Random) -> Neighbours:
    """Million, lakh, dozen, hundredths."""
    value = rng.randrange(2, 90)
    word = rng.choice(sorted(SCALES))
    scale = SCALES[word]
    return Neighbours(
        spell(value * scale), (f"{value} {word}", rf"{value}\text{{ {word}}}"), (str(value), f"{value + 1} {word}")
    )


def clock_times(rng: Random) -> Neighbours:
    """Times: 15:30 is 3:30 p.m."""
    hour, minute = rng.randrange(13, 24), rng.randrange(60)
    other = (minute + rng.randrange(1, 59)) % 60
    return Neighbours(
        f"{hour}:{minute:02}",
        (f"{hour - 12}:{minute:02} p.m.", rf"{hour - 12}:{minute:02}\text{{ PM}}"),
        (
            f"{hour - 12}:{minute:02} a.m.",
            f"{hour - 12}:{other:02} p.m.",
            f"{hour}:{other:02}",
            f"{hour - 12}:{minute:02}",
        ),
    )


def words_after_a_number(rng: Random) -> Neighbours:
    """Words that are no unit change what is said."""
    value = str(rng.randrange(2, 999))
    noun = rng.choice(["apples", "ways", "students", "marbles", "square units", "cars", "cups of tea", "red balls"])
    words = rng.choice(
        ["does not work", "or more", "or fewer", "and up", "at most", "is wrong", "is not a solution", "less than x",
         "more than y", "over seven", "squared", "cubed", "thirds", "units less", "and some", "percent of x", "times x",
         "doubled", "below zero", "or so they say", "factorial", "plus one", "minus two", "to the fourth", "not", "no",
         "if x is positive", "but maybe not", "is too small", "was my guess", "cannot be right", "modulo nine"]
    )  # fmt: skip
    return Neighbours(
        value, (rf"{value}\text{{ {noun}}}", f"{value} {noun}"), (rf"{value}\text{{ {words}}}", f"{value} {words}")
    )


def orders_of_letters(rng: Random) -> Neighbours:
    """Codes, orders and codons: CAT is not ACT."""
    letters = [rng.choice("ABCDEFGHKLMNPQRSTUVWXYZ") for _ in range(rng.randrange(3, 7))]
    shuffled = letters[:]
    rng.shuffle(shuffled)
    word = "".join(letters)
    return Neighbours(
        word,
        (rf"\text{{{word}}}", " ".join(letters)),
        () if shuffled == letters else ("".join(shuffled), r" \cdot ".join(shuffled)),
    )


def labels(rng: Random) -> Neighbours:
    """Seats and squares: 3B is not B3."""
    digit, letter = rng.randrange(2, 60), rng.choice("ABCDEFGHK")
    first, second = (f"{letter}{digit}", f"{digit}{letter}")
    return Neighbours(first, (first, rf"\text{{{first}}}"), (second, f"{letter}{digit + 1}"))


def figures(rng: Random) -> Neighbours:
    """Angles and similar triangles."""
    a, b, c, d, e, f = rng.sample("ABCDEFGHKLMNPQRST", 6)
    if rng.random() < 0.5:
        return Neighbours(
            rf"\angle {a}{b}{c}", (rf"\angle {c}{b}{a}", f"∠{a}{b}{c}"), (rf"\angle {b}{a}{c}", rf"\angle {a}{c}{b}")
        )
    sign = rng.choice(["sim", "cong"])
    return Neighbours(
        rf"\triangle {a}{b}{c} \{sign} \triangle {d}{e}{f}",
        (rf"\triangle {b}{c}{a} \{sign} \triangle {e}{f}{d}", rf"\triangle {d}{e}{f} \{sign} \triangle {a}{b}{c}"),
        (rf"\triangle {a}{b}{c} \{sign} \triangle {e}{d}{f}", rf"\triangle {b}{a}{c} \{sign} \triangle {d}{e}{f}"),
    )


def products_of_matrices(rng: Random) -> Neighbours:
    """Factors that do not commute."""
    a, b, c = rng.sample("ABCDPQRS", 3)
    mark = rng.choice(["{-1}", "T"])
    return Neighbours(
        f"{b}^{mark}{a}^{mark}",
        (f"({a}{b})^{mark}", rf"{b}^{mark} \cdot {a}^{mark}"),
        (f"{a}^{mark}{b}^{mark}", f"({b}{a})^{mark}", f"{b}^{mark}{c}^{mark}", f"{b}{a}"),
    )


def dates(rng: Random) -> Neighbours:
    """Dates are no subtraction."""
    year, month, day = rng.randrange(1900, 2100), rng.randrange(1, 13), rng.randrange(1, 28)
    name = calendar.month_name[month]
    return Neighbours(
        f"{year}-{month:02}-{day:02}",
        (f"{name} {day}, {year}", f"{day} {name} {year}", f"{year}/{month:02}/{day:02}"),
        (str(year - month - day), f"{year}-{month:02}-{day + 1:02}", f"{year + 1}-{month:02}-{day:02}", str(year)),
    )


def ranges(rng: Random) -> Neighbours:
    """Pages, scores and years are no subtraction."""
    first = rng.randrange(1, 900)
    second = first + rng.randrange(1, 90)
    return Neighbours(
        f"{first}-{second}",
        (f"{first} to {second}", f"{first} - {second}"),
        (str(first - second), str(first), f"{second}-{first}"),
    )


def mixed_numbers(rng: Random) -> Neighbours:
    """A minus is no mixed number: 2-1/4 is 7/4."""
    whole, bottom = rng.randrange(1, 30), rng.randrange(3, 12)
    top = rng.randrange(1, bottom)
    less, more = whole - Fraction(top, bottom), whole + Fraction(top, bottom)
    return Neighbours(
        rf"\frac{{{less.numerator}}}{{{less.denominator}}}",
        (f"{whole}-{top}/{bottom}",),
        (f"{whole} {top}/{bottom}", spell(more)),
    )


def names(rng: Random) -> Neighbours:
    """Values of several names have an order."""
    letters = rng.choice(["xy", "ab", "xyz", "pq", "mn"])
    values = rng.sample(range(-20, 40), len(letters))
    order = rng.choice([order for order in permutations(range(len(letters))) if order != tuple(range(len(letters)))])
    swapped = [values[place] for place in order]
    return Neighbours(
        ", ".join(f"{name}={value}" for name, value in zip(letters, values, strict=True)),
        (f"({', '.join(map(str, values))})", ", ".join(map(str, values)),
         ", ".join(f"{letters[place]}={values[place]}" for place in order)),
        (", ".join(map(str, swapped)), f"({', '.join(map(str, swapped))})",
         ", ".join(f"{name}={value}" for name, value in zip(letters, swapped, strict=True))),
    )  # fmt: skip


CONNECTIVES: dict[str, tuple[str, Callable[[bool, bool], bool]]] = {
    "and": (r" \land ", lambda x, y: x and y),
    "or": (r" \lor ", lambda x, y: x or y),
    "implies": (r" \to ", lambda x, y: not x or y),
}
Formula = tuple[str, Callable[[bool, bool, bool], bool]]


def draw_formula(rng: Random, depth: int = 2) -> Formula:
    if depth == 0 or rng.random() < 0.2:
        place = rng.randrange(3)
        return "pqr"[place], lambda *values: values[place]
    if rng.random() < 0.25:
        text, truth = draw_formula(rng, depth - 1)
        return rf"\neg ({text})", lambda *values: not truth(*values)
    sign, operation = CONNECTIVES[rng.choice(sorted(CONNECTIVES))]
    (left, left_truth), (right, right_truth) = draw_formula(rng, depth - 1), draw_formula(rng, depth - 1)
    return f"({left}){sign}({right})", lambda *values: operation(left_truth(*values), right_truth(*values))


def propositions(rng: Random) -> Neighbours:
    """Formulas by their truth tables."""
    rows = list(product((False, True), repeat=3))
    while True:
        (reference, truth), (answer, answer_truth) = draw_formula(rng), draw_formula(rng)
        table, answer_table = [truth(*row) for row in rows], [answer_truth(*row) for row in rows]
        if len(set(table)) == 2 and len(reference) > 1 and len(answer) > 1:
            break
    double = rf"\neg (\neg ({reference}))"
    return Neighbours(reference, (reference, double, *([answer] if table == answer_table else [])),
                      (rf"\neg ({reference})", *([answer] if table != answer_table else [])))  # fmt: skip


def sets(rng: Random) -> Neighbours:
    """Unions and intersections of named sets."""
    a, b = rng.sample("ABCDEFG", 2)
    first, second = rng.sample([r"\cup", r"\cap"], 2)
    return Neighbours(rf"{a} {first} {b}", (rf"{b} {first} {a}",), (rf"{a} {second} {b}", a, rf"{a} \setminus {b}"))


def identities(rng: Random) -> Neighbours:
    """An identity is not paid for another true equation."""
    n, m = rng.sample(range(2, 9), 2)
    a, b = rng.sample("abxyuv", 2)
    pool = [
        (f"({a}+{n}{b})^2", f"{a}^2+{2 * n}{a}{b}+{n * n}{b}^2"),
        (f"({a}-{n}{b})^2", f"{a}^2-{2 * n}{a}{b}+{n * n}{b}^2"),
        (f"{a}^2-{n * n}{b}^2", f"({a}-{n}{b})({a}+{n}{b})"),
        (f"{n}({a}+{m}{b})^2", f"{n}{a}^2+{2 * n * m}{a}{b}+{n * m * m}{b}^2"),
        (rf"\sin^2 {a}+\cos^2 {a}", "1"),
        (rf"\cos 2{a}", rf"1-2\sin^2 {a}"),
        (rf"\sin 2{a}", rf"2\sin {a}\cos {a}"),
    ]
    (left, right), (other_left, other_right) = rng.sample(pool, 2)
    return Neighbours(
        f"{left}={right}",
        (f"{right}={left}", f"{left} = {right}"),
        (f"{other_left}={other_right}", "0=0", f"{n}={n}", f"{a}={a}", f"{right}={right}"),
    )


def operations_left(rng: Random) -> Neighbours:
    """The question restated is no answer."""
    n, m = rng.randrange(4, 60), rng.randrange(4, 60)
    low, high = sorted(rng.sample(range(-9, 10), 2))
    integral, quadratic = rf"\int_0^1 x^{{{n - 1}}} dx", f"x^2+({-low - high})x+({low * high})<0"
    system = rf"\begin{{cases}}x+y={n + m}\\x-y={n - m}\end{{cases}}"
    gcd, lcm = math.gcd(n, m), math.lcm(n, m)
    return rng.choice(
        (
            Neighbours(str(gcd), (str(gcd),), (rf"\gcd({n},{m})", rf"\text{{gcd}}({n}, {m})")),
            Neighbours(str(lcm), (rf"\frac{{{n * m}}}{{{gcd}}}",), (rf"\operatorname{{lcm}}({n},{m})",)),
            Neighbours(str(n * (n + 1) // 2), (rf"\frac{{{n}\cdot {n + 1}}}{{2}}",), (rf"\sum_{{k=1}}^{{{n}}} k",)),
            Neighbours(rf"\frac{{1}}{{{n}}}", (f"1/{n}", rf"{integral} = \frac{{1}}{{{n}}}"), (integral,)),
            Neighbours(str((n + m) % m), (str(n % m),), (rf"{n + m} \bmod {m}",)),
            Neighbours(f"({low},{high})", (f"{low}<x<{high}",), (f"(x-({low}))(x-({high}))<0", quadratic)),
            Neighbours(f"x>{n}", (f"{n}<x", rf"({n},\infty)"), (f"3x+1>2x+{n + 1}", f"x^3>{n**3}")),
            Neighbours(f"({n},{m})", (f"x={n}, y={m}",), (f"x+y={n + m}, x-y={n - m}", system)),
        )
    )


def residues(rng: Random) -> Neighbours:
    """Congruences."""
    modulus = rng.randrange(3, 40)
    residue = rng.randrange(modulus)
    smaller, larger = residue - modulus, residue + modulus
    return Neighbours(
        rf"x \equiv {residue} \pmod{{{modulus}}}",
        (rf"x\equiv {larger} \pmod{{{modulus}}}", f"x ≡ {smaller} (mod {modulus})"),
        (rf"x \equiv {residue + 1} \pmod{{{modulus}}}", rf"x \equiv {residue} \pmod{{{modulus + 1}}}", str(residue)),
    )


def integer_parameters(rng: Random) -> Neighbours:
    """The name of an integer parameter means nothing."""
    first, second = rng.sample("knm", 2)
    n = rng.randrange(2, 9)
    start, condition = rf"\frac{{\pi}}{{{n}}}", rf"{second}\in\mathbb{{Z}}"
    return Neighbours(
        rf"{start}+{first}\pi, {first} \in \mathbb{{Z}}",
        (rf"{start}+{second}\pi, {condition}", rf"x = {start} - {second}\pi, {condition}"),
        (rf"{start}+2{second}\pi, {condition}", rf"\frac{{\pi}}{{{n + 1}}}+{second}\pi, {condition}"),
    )


def constants_of_integration(rng: Random) -> Neighbours:
    """The name of a constant of integration means nothing, and its absence does."""
    n = rng.randrange(2, 9)
    constant = rng.choice(["c", "k", "K"])
    return Neighbours(
        rf"x^{n}+C", (rf"x^{n}+{constant}", rf"C+x^{n}"), (f"x^{n}", f"x^{n + 1}+{constant}", f"x^{n}+2x+C")
    )


def sizes(rng: Random) -> Neighbours:
    """Values that are too large to compute."""
    base, exponent = rng.randrange(2, 10), rng.randrange(7, 10)
    huge = rf"{base}^{{{exponent}^{{{exponent}}}}}"
    return Neighbours(
        str(rng.randrange(2, 99)),
        (),
        (huge, f"-{huge}", rf"\frac{{1}}{{{huge}}}", f"(x+y+z)^{{{rng.randrange(200, 999)}}}", f"{huge}+1"),
    )


def texts(rng: Random) -> Neighbours:
    """References that are no mathematics."""
    first, second = rng.sample(
        ["甲", "乙", "大于", "小于", r"\heartsuit", "é", r"a \propto b", r"a \propto c", "①③", "②"], 2
    )
    return Neighbours(first, (first,), (second, "7"))


KINDS: dict[str, Callable[[Random], Neighbours]] = {
    function.__name__: function
    for function in (
        *(units, temperatures, compound_quantities, currencies, scale_words, clock_times, words_after_a_number),
        *(orders_of_letters, labels, figures, products_of_matrices, dates, ranges, mixed_numbers, names, propositions),
        *(sets, identities, operations_left, residues, integer_parameters, constants_of_integration, sizes, texts),
    )
}
