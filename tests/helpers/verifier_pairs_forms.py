"""Pairs of forms: operations left to do, sizes, bound names, sloppy LaTeX, hidden characters. See verifier_pairs.py."""

import math
from collections.abc import Iterator
from fractions import Fraction
from random import Random

from verifier_pairs import Kind, Pair, both, boxed
from verifier_pairs_numbers import fraction, signed


def operations_left(rng: Random) -> Iterator[Pair]:
    """The question restated, where the reference is its result."""
    n, m, k = rng.randrange(3, 40), rng.randrange(3, 40), rng.randrange(2, 6)
    low, high = sorted(rng.sample(range(-9, 10), 2))
    cases = (
        (
            str(math.gcd(n * k, m * k)),
            [str(math.gcd(n * k, m * k))],
            [rf"\gcd({n * k}, {m * k})", rf"\mathrm{{gcd}}({n * k},{m * k})", f"gcd({n * k},{m * k})"],
        ),
        (
            str(math.lcm(n, m)),
            [f"{math.lcm(n, m)}.0"],
            [rf"\operatorname{{lcm}}({n},{m})", f"lcm({n}, {m})", rf"\text{{lcm}}({n}, {m})"],
        ),
        (
            str(sum(i * i for i in range(1, n + 1))),
            [str(n * (n + 1) * (2 * n + 1) // 6)],
            [rf"\sum_{{i=1}}^{{{n}}} i^2", rf"\sum_{{k=1}}^{n} k^2"],
        ),
        (fraction(Fraction(1, k + 1)), [f"1/{k + 1}"], [rf"\int_0^1 x^{k}\,dx", rf"\int_{{0}}^{{1}} x^{{{k}}} dx"]),
        (
            str(2 * n),
            [f"{n * 2}"],
            [rf"\lim_{{x \to {n}}} \frac{{x^2-{n * n}}}{{x-{n}}}", rf"\lim_{{x\to 0}} \frac{{\sin {2 * n}x}}{{x}}"],
        ),
        (str(n**k % m), [str(n**k % m)], [rf"{n}^{k} \bmod {m}", rf"{n}^{k} \mod {m}"]),
        (
            f"({low}, {high})",
            [f"{low} < x < {high}"],
            [f"x^2{signed(-low - high)}x{signed(low * high)} < 0", f"(x{signed(-low)})(x{signed(-high)})<0"],
        ),
        (
            f"({n}, {m})",
            [f"x={n}, y={m}"],
            [rf"\begin{{cases}} x+y={n + m} \\ x-y={n - m} \end{{cases}}", f"x+y={n + m}, x-y={n - m}"],
        ),
        (str(max(n, m)), [str(max(n, m))], [rf"\max({n}, {m})", rf"\max\{{{n},{m}\}}"]),
        (
            str(n * m - k),
            [str(n * m - k)],
            [
                rf"\begin{{vmatrix}} {n} & {k} \\ 1 & {m} \end{{vmatrix}}",
                rf"\det \begin{{pmatrix}} {n} & {k} \\ 1 & {m} \end{{pmatrix}}",
            ],
        ),
        (
            f"{k * n}x^{{{n - 1}}}",
            [f"{k * n}x^{{{n - 1}}}"],
            [rf"\frac{{d}}{{dx}} {k}x^{{{n}}}", rf"\frac{{d}}{{dx}}\left({k}x^{{{n}}}\right)"],
        ),
        (str(math.factorial(k + 2)), [f"{k + 2}!"], [rf"\prod_{{i=1}}^{{{k + 2}}} i"]),
        (f"x > {n}", [f"{n} < x", rf"({n}, \infty)"], [f"{k + 1}x - {n} > {k}x", f"x^3 > {n**3}"]),
        (str(n), [f"x={n}", str(n)], [f"{k}x={k * n}", f"x+{m}={n + m}", f"x-{m}={n - m}"]),
    )
    yield from both(rng, *rng.choice(cases))


def sizes(rng: Random) -> Iterator[Pair]:
    """Values that are too large to compute are no small ones."""
    value, base, top = rng.randrange(-50, 999), rng.randrange(2, 20), rng.randrange(5, 12)
    huge = rf"{base}^{{{top}^{{{top}}}}}"
    yield from both(
        rng,
        str(value),
        [str(value)],
        [
            huge,
            f"-{huge}",
            f"{huge}+{value}",
            rf"\frac{{1}}{{{huge}}}",
            f"{top * 100}!",
            rf"10^{{{top * 1000}}}",
            rf"{value + 1}^{{{top * 900}}}" if value > 1 else huge,
        ],
    )
    n = rng.randrange(20, 400)
    yield from both(
        rng,
        f"{base}^{{{n}}}",
        [rf"{base} \cdot {base}^{{{n - 1}}}", rf"{base**2}^{{{n}/2}}"],
        [f"{base}^{{{n + 1}}}", f"{base + 1}^{{{n}}}", str(n)],
    )


def same_text_only(rng: Random) -> Iterator[Pair]:
    """References that are no mathematics: every other text is wrong, not without a verdict."""
    pool = [
        "甲",
        "乙",
        "丙",
        "丁",
        "充分不必要条件",
        "必要不充分条件",
        "增大",
        "减小",
        r"\spadesuit",
        r"a \perp b",
        r"a \parallel b",
        "①②",
        "②③",
        "①③④",
        "先增大后减小",
        r"l \perp \alpha",
    ]
    first, second = rng.sample(pool, 2)
    yield from both(
        rng,
        first,
        [first, f" {first} "],
        [second, str(rng.randrange(99)), rf"\text{{{rng.choice(['yes', 'north', 'prime'])}}}"],
    )


def congruences(rng: Random) -> Iterator[Pair]:
    modulus = rng.randrange(3, 60)
    residue = rng.randrange(modulus)
    name = rng.choice("xna")
    yield from both(
        rng,
        rf"{name} \equiv {residue} \pmod{{{modulus}}}",
        [
            rf"{name}\equiv {residue + modulus} \pmod{{{modulus}}}",
            rf"{name} \equiv {residue - modulus} \pmod {{{modulus}}}",
            rf"{residue} \pmod{{{modulus}}}",
        ],
        [
            rf"{name} \equiv {residue + 1} \pmod{{{modulus}}}",
            rf"{name} \equiv {residue} \pmod{{{modulus + 1}}}",
            str(residue),
            f"{name} = {residue}",
        ],
    )


def bound_names(rng: Random) -> Iterator[Pair]:
    """Constants of integration and integer parameters: their name means nothing."""
    n, m = rng.randrange(2, 12), rng.randrange(2, 12)
    constant = rng.choice("cCkK")
    yield from both(
        rng,
        rf"{m}x^{{{n}}} + \sin x + C",
        [rf"{m}x^{{{n}}}+\sin x+{constant}", rf"\sin x + {m}x^{{{n}}} + {constant}"],
        [
            rf"{m}x^{{{n}}}+\sin x",
            rf"{m}x^{{{n}}}+\cos x+C",
            rf"{m + 1}x^{{{n}}}+\sin x+C",
            rf"{m}x^{{{n}}}+{constant}\sin x",
        ],
    )
    first, second = rng.sample("knm", 2)
    yield from both(
        rng,
        rf"x = \frac{{\pi}}{{{n}}} + {m}{first}\pi, {first} \in \mathbb{{Z}}",
        [
            rf"x=\frac{{\pi}}{{{n}}}+{m}{second}\pi, {second}\in\mathbb{{Z}}",
            rf"\frac{{\pi}}{{{n}}} + {m}{second}\pi, {second} \in \mathbb{{Z}}",
        ],
        [
            rf"x=\frac{{\pi}}{{{n + 1}}}+{m}{second}\pi, {second}\in\mathbb{{Z}}",
            rf"x=\frac{{\pi}}{{{n}}}+{m + 1}{second}\pi, {second}\in\mathbb{{Z}}",
            rf"\frac{{\pi}}{{{n}}}",
        ],
    )


def latex_forms(rng: Random) -> Iterator[Pair]:
    """Sloppy LaTeX with one meaning."""
    a, b, c = rng.randrange(1, 10), rng.randrange(2, 10), rng.randrange(11, 99)
    big = rng.randrange(1000, 999999)
    cases = (
        (
            fraction(Fraction(a, b)),
            [
                rf"\frac{a}{b}",
                rf"\frac {a}{{{b}}}",
                rf"\tfrac{{{a}}}{{{b}}}",
                rf"\cfrac{{{a}}}{{{b}}}",
                f"\x0crac{{{a}}}{{{b}}}",
                rf"{{{a}\over {b}}}",
            ],
            [rf"\frac{{{a + 1}}}{{{b}}}"],
        ),
        (
            str(big),
            [
                f"{big // 1000},\\! {big % 1000:03}",
                rf"{{\bf {big}}}",
                rf"\textbf{{{big}}}",
                rf"\textnormal{{{big}}}",
                rf"\therefore {big}",
                rf"\mathbf{{{big}}}",
                rf"{big}\\",
                rf"{big}\;",
            ],
            [rf"\textbf{{{big + 1}}}", rf"{{\bf {big - 1}}}"],
        ),
        (
            str(math.comb(max(a, b), min(a, b))),
            [
                rf"\binom{max(a, b)}{min(a, b)}",
                rf"\binom{{{max(a, b)}}}{{{min(a, b)}}}",
                rf"{{{max(a, b)}\choose {min(a, b)}}}",
            ],
            [rf"\binom{{{max(a, b) + 2}}}{{{min(a, b)}}}"],
        ),
        (
            rf"\sqrt{{{c}}}",
            [rf"\sqrt {{{c}}}", rf"\sqrt({c})", f"sqrt({c})", rf"\sqrt{{{{{c}}}}}"],
            [rf"\sqrt{{{c + 1}}}"],
        ),
        (
            f"x={c}",
            [rf"\therefore x={c}", rf"\Rightarrow x = {c}", rf"x = \mathbf{{{c}}}", f"{c}"],
            [rf"\therefore x={c + 1}", f"y={c}"],
        ),
        (
            rf"{c}\text{{ meters}}",
            [rf"{c}\textbf{{ meters}}", rf"{c}\ \textnormal{{meters}}", rf"{c}~\mathrm{{m}}", rf"{c}\textrm{{ m}}"],
            [rf"{c + 1}\textbf{{ meters}}"],
        ),
        (rf"{c}^\circ", [rf"{c}^{{\circ}}", f"{c}°", rf"{c}\degree", f"{c} degrees", str(c)], [rf"{c + 1}^\circ"]),
        (
            rf"\frac{{{a}\pi}}{{{b}}}",
            [rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}", rf"\dfrac{{{a} \pi}}{{{b}}}", f"{a}π/{b}"],
            [rf"\frac{{{a}}}{{{b}\pi}}", rf"\frac{{{a}}}{{{b}}}"],
        ),
    )
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
        operations_left,
        sizes,
        same_text_only,
        congruences,
        bound_names,
        latex_forms,
        hidden_characters,
        signs_outside,
    )
}
