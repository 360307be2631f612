"""Pairs of letters, labels, words, dates, names, logic and chemistry. See verifier_pairs.py."""

import calendar
import math
from collections.abc import Iterator
from datetime import date, timedelta
from random import Random

from verifier_pairs import Kind, Pair, both
from verifier_pairs_quantities import CLAIMS


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
            rng,
            rf"\angle {a}{b}{c}",
            [rf"\angle {c}{b}{a}", rf"\angle {{{a}{b}{c}}}", f"∠{a}{b}{c}", rf"\angle {{ {c}{b}{a} }}"],
            [rf"\angle {b}{a}{c}", rf"\angle {a}{c}{b}", rf"\angle {a}{b}{d}", rf"\angle {c}{a}{b}"],
        )
        yield from both(rng, f"{a}{b}", [f"{b}{a}"], [f"{a}{c}", f"{b}{d}"])
        return
    sign = rng.choice([r"\sim", r"\cong"])
    other = r"\cong" if sign == r"\sim" else r"\sim"
    yield from both(
        rng,
        rf"\triangle {a}{b}{c} {sign} \triangle {d}{e}{f}",
        [rf"\triangle {c}{a}{b} {sign} \triangle {f}{d}{e}", rf"\triangle {d}{e}{f} {sign} \triangle {a}{b}{c}"],
        [
            rf"\triangle {a}{b}{c} {sign} \triangle {d}{f}{e}",
            rf"\triangle {a}{c}{b} {sign} \triangle {d}{e}{f}",
            rf"\triangle {a}{b}{d} {sign} \triangle {c}{e}{f}",
            rf"\triangle {a}{b}{c} {other} \triangle {d}{e}{f}",
        ],
    )


def matrix_products(rng: Random) -> Iterator[Pair]:
    a, b, c = rng.sample("ABCDPQRSUVX", 3)
    mark = rng.choice(["{-1}", "T", "{T}"])
    product = f"{c}^{mark}{b}^{mark}{a}^{mark}"
    yield from both(
        rng,
        product,
        [f"({a}{b}{c})^{mark}", rf"{c}^{mark} \cdot {b}^{mark} \cdot {a}^{mark}", f"{c}^{mark}({a}{b})^{mark}"],
        [f"{a}^{mark}{b}^{mark}{c}^{mark}", f"({c}{b}{a})^{mark}", f"{b}^{mark}{c}^{mark}{a}^{mark}", f"{a}{b}{c}"],
    )
    yield from both(rng, f"{a}{b}-{b}{a}", [f"-{b}{a}+{a}{b}"], [f"{b}{a}-{a}{b}", "0", f"{a}{b}+{b}{a}"])


def dates(rng: Random) -> Iterator[Pair]:
    day = date(1850, 1, 1) + timedelta(rng.randrange(90000))
    other = day + timedelta(rng.randrange(1, 300))

    def spellings(day: date) -> list[str]:
        month = calendar.month_name[day.month]
        return [
            f"{day:%Y-%m-%d}",
            f"{month} {day.day}, {day.year}",
            f"{day.day} {month} {day.year}",
            f"{day:%Y/%m/%d}",
            rf"\text{{{month} {day.day}, {day.year}}}",
        ]

    reference = rng.choice(spellings(day))
    wrong = [rng.choice(spellings(other)), str(day.year - day.month - day.day), str(day.year)]
    yield from both(rng, reference, spellings(day), wrong)


def hyphens(rng: Random) -> Iterator[Pair]:
    """Scores, ranges of years, telephones, plates: no subtraction."""
    a, b = rng.sample(range(2, 90), 2)
    year = rng.randrange(1500, 2020)
    phone = [str(rng.randrange(100, 1000)), str(rng.randrange(100, 1000)), str(rng.randrange(1000, 10000))]
    plate = "".join(rng.choice("ABCDEFGHKLM") for _ in range(3))
    yield from both(
        rng, f"{a}-{b}", [f"{a} - {b}", rf"\text{{{a}-{b}}}"], [str(a - b), f"{b}-{a}", str(a), f"{a}-{b + 1}"]
    )
    yield from both(rng, f"{year}-{year + a}", [f"{year} - {year + a}"], [str(-a), f"{year}-{year + a + 1}", str(year)])
    yield from both(
        rng,
        "-".join(phone),
        [rf"\text{{{'-'.join(phone)}}}"],
        [str(int(phone[0]) - int(phone[1]) - int(phone[2])), "-".join(reversed(phone))],
    )
    yield from both(
        rng,
        f"{plate}-{year}",
        [rf"\text{{{plate}-{year}}}"],
        [f"{plate}-{year + 1}", f"{plate[::-1]}-{year}" if plate != plate[::-1] else str(year)],
    )


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
        rng,
        assigned(values),
        [f"({', '.join(map(str, values))})", moved, assigned(values, r"\text{ and }" if len(letters) == 2 else "; ")],
        [
            ", ".join(map(str, swapped)),
            assigned(swapped),
            f"({', '.join(map(str, swapped))})",
            assigned([*values[:-1], values[-1] + 1]),
        ],
    )


def logic(rng: Random) -> Iterator[Pair]:
    """And is not or: De Morgan's laws, contraposition."""
    p, q = rng.sample("pqrst", 2)
    cases = (
        (
            rf"{p} \land {q}",
            [rf"{q} \land {p}", rf"\neg(\neg {p} \lor \neg {q})"],
            [rf"{p} \lor {q}", rf"{p} \to {q}", p],
        ),
        (
            rf"{p} \lor {q}",
            [rf"{q} \lor {p}", rf"\neg {p} \to {q}", rf"{q} \vee {p}"],
            [rf"{p} \land {q}", rf"{p} \lor \neg {q}", q],
        ),
        (
            rf"{p} \to {q}",
            [rf"\neg {q} \to \neg {p}", rf"\neg {p} \lor {q}", rf"{p} \Rightarrow {q}"],
            [rf"{q} \to {p}", rf"\neg {p} \to \neg {q}", rf"{p} \leftrightarrow {q}"],
        ),
        (
            rf"\neg({p} \land {q})",
            [rf"\neg {p} \lor \neg {q}"],
            [rf"\neg {p} \land \neg {q}", rf"{p} \lor {q}", rf"\neg {p} \land {q}"],
        ),
        (rf"\neg({p} \lor {q})", [rf"\neg {p} \land \neg {q}"], [rf"\neg {p} \lor \neg {q}", rf"\neg {p} \lor {q}"]),
        (rf"{p} \land (\neg {q} \lor {p})", [p + r" \land " + p], [q, rf"{p} \land {q}"]),
    )
    yield from both(rng, *rng.choice(cases))
    a, b, c = rng.sample("ABCDEMNST", 3)
    cases = (
        (rf"{a} \cup {b}", [rf"{b} \cup {a}"], [rf"{a} \cap {b}", rf"{a} \cup {c}", a]),
        (rf"{a} \cap {b}", [rf"{b} \cap {a}"], [rf"{a} \cup {b}", rf"{c} \cap {b}", b]),
        (
            rf"{a} \cap ({b} \cup {c})",
            [rf"({a} \cap {b}) \cup ({a} \cap {c})"],
            [rf"{a} \cup ({b} \cap {c})", rf"({a} \cap {b}) \cup {c}"],
        ),
    )
    yield from both(rng, *rng.choice(cases))


def ratios(rng: Random) -> Iterator[Pair]:
    a, b = rng.sample(range(1, 40), 2)
    common = math.gcd(a, b)
    a, b, k = a // common, b // common, rng.randrange(2, 7)
    first, second = rng.sample(["V_1", "V_2", "AB", "CD", "x", "y", "S_1", "S_2", "a", "b"], 2)
    yield from both(
        rng,
        f"{first}:{second}={a}:{b}",
        [f"{a}:{b}", f"{second}:{first}={b}:{a}", f"{first} : {second} = {a} : {b}", rf"{a} : {b}"],
        [f"{b}:{a}", f"{first}:{second}={b}:{a}", f"{a}:{b + 1}", f"{a}{b}"],
    )
    yield from both(
        rng,
        f"{a}:{b}",
        [rf"\frac{{{a}}}{{{b}}}", f"{a} to {b}", f"{a}/{b}"]
        + ([f"{k * a}:{k * b}"] if max(a, b) > 6 and b < 10 and k * b < 10 else []),
        [f"{b}:{a}", f"{a + 1}:{b}", rf"\frac{{{b}}}{{{a}}}"],
    )


ELEMENTS = (("H", 1), ("Na", 1), ("K", 1), ("Mg", 2), ("Ca", 2), ("Zn", 2), ("Al", 3), ("Fe", 3))
ACIDS = (("Cl", 1), ("NO_3", 1), ("OH", 1), ("SO_4", 2), ("CO_3", 2), ("PO_4", 3))


def formulas(rng: Random) -> Iterator[Pair]:
    """Salts by the charges of their ions, and reactions by their sides."""
    (metal, charge), (other, other_charge) = rng.sample(ELEMENTS, 2)
    acid, acid_charge = rng.choice(ACIDS)

    def salt(metal: str, charge: int) -> str:
        common = math.gcd(charge, acid_charge)
        metals, acids = acid_charge // common, charge // common
        is_group = acid != "Cl" and acids > 1
        written = f"({acid})" if is_group else acid
        return metal + (f"_{metals}" if metals > 1 else "") + written + (f"_{acids}" if acids > 1 else "")

    formula, another = salt(metal, charge), salt(other, other_charge)
    if any(character.isdigit() for character in formula):
        plain = formula.replace("_", "")
        right = [rf"\mathrm{{{formula}}}", plain, rf"\text{{{metal}}}" + formula[len(metal) :], rf"\ce{{{plain}}}"]
        yield from both(rng, formula, right, [another, formula + "_5", metal])
    first, second = rng.sample(["N_2", "O_2", "Cl_2", "F_2"], 2)
    n, m, k = (rng.randrange(2, 7) for _ in range(3))
    product = first[:-2] + second
    reference = rf"{n}{first} + {m}{second} \to {k}{product}"
    yield from both(
        rng,
        reference,
        [rf"{m}{second}+{n}{first} \rightarrow {k}{product}", rf"\mathrm{{{n}{first} + {m}{second} -> {k}{product}}}"],
        [rf"{k}{product} \to {n}{first} + {m}{second}", rf"{n + 1}{first} + {m}{second} \to {k}{product}", product],
    )


PEOPLE = (
    "Alice",
    "Bob",
    "Carla",
    "Dinah",
    "Eve",
    "Omar",
    "Irene",
    "Paolo",
    "Monday",
    "Friday",
    "Paris",
    "Rome",
    "iron",
    "oak",
)


def lists_of_words(rng: Random) -> Iterator[Pair]:
    """Several names in any order; an anagram of a name is no name."""
    named = rng.sample(PEOPLE, rng.randrange(2, 5))
    shuffled = rng.sample(named, len(named))
    other = rng.choice([name for name in PEOPLE if name not in named])
    turned = named[0][1:] + named[0][0]
    yield from both(
        rng,
        ", ".join(named),
        [", ".join(shuffled), ", ".join(shuffled[:-1]) + f" and {shuffled[-1]}", rf"\text{{{', '.join(shuffled)}}}"],
        [", ".join(named[:-1]), ", ".join([*named[1:], other]), ", ".join([turned, *named[1:]])],
    )


def remainders(rng: Random) -> Iterator[Pair]:
    quotient, rest = rng.sample(range(1, 400), 2)
    word = rng.choice(["R", "r", "remainder"])
    yield from both(
        rng,
        f"{quotient} R {rest}",
        [f"{quotient} {word} {rest}", rf"{quotient} \text{{ {word} }} {rest}", f"{quotient}R{rest}"],
        [f"{rest} R {quotient}", f"{quotient} R {rest + 1}", str(quotient), f"{quotient}.{rest}"],
    )


def letters_that_cancel(rng: Random) -> Iterator[Pair]:
    """Words and letters that vanish in algebra are still there."""
    value, name = rng.randrange(2, 40), rng.choice("xyznk")
    # 0 squared, and 0 eighths, are 0.
    claim = rng.choice([claim for claim in CLAIMS if claim not in ("squared", "cubed", "thirds", "eighths")])
    wrong = [
        f"{value}+{name}-{name}",
        rf"{value}\cdot\frac{{{name}}}{{{name}}}",
        rf"{value}\text{{ {claim}}}",
        f"{value} {claim}",
    ]
    yield from both(rng, str(value), [str(value), f"{name} = {value}"], wrong)
    yield from both(rng, "0", ["0", f"{name}=0"], [f"0{name}", rf"0\text{{ {claim}}}", f"{name}-{name}"])


def repeated_values(rng: Random) -> Iterator[Pair]:
    """A value that is listed twice is needed twice."""
    values = rng.sample(range(2, 60), rng.randrange(2, 4))
    repeated = [*values, values[0]]
    shuffled = rng.sample(repeated, len(repeated))

    def write(items: list[int]) -> str:
        return ", ".join(map(str, items))

    yield from both(
        rng,
        write(repeated),
        [write(shuffled)],
        [write(values), write([*values, values[1]]), write([*repeated, values[0]])],
    )


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        letter_orders,
        labels,
        figures,
        matrix_products,
        dates,
        hyphens,
        names,
        logic,
        ratios,
        formulas,
        lists_of_words,
        remainders,
        letters_that_cancel,
        repeated_values,
    )
}
