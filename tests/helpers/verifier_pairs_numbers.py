"""Pairs of numbers, expressions, sets and equations, and how numbers are spelled. See verifier_pairs.py."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from random import Random

from verifier_pairs import Kind, Pair, both


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


def numbers(rng: Random) -> Iterator[Pair]:
    """Fractions, decimals, thousands, powers of ten, mixed numbers."""
    value = Fraction(rng.randrange(-900, 900), rng.choice([1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 20, 25, 40]))
    right = [fraction(value), fraction(value, r"\dfrac"), f"{value.numerator}/{value.denominator}"]
    if value.denominator == 1:
        right = [
            str(value),
            f"{value}.0",
            f"+{value}" if value > 0 else str(value),
            f"{value}.",
            rf"\mathbf{{{value}}}",
        ]
        big = value.numerator * 1000 + rng.randrange(1000)
        yield from both(
            rng,
            str(big),
            [f"{big:,}", rf"{big:,}".replace(",", r"\,"), f"{big:,}".replace(",", "{,}")],
            [f"{big + 1:,}", f"{big:,}0", str(big // 10)],
        )
        power = rng.randrange(3, 9)
        yield from both(
            rng,
            str(value * 10**power),
            [
                rf"{value} \times 10^{power}",
                rf"{value} \cdot 10^{{{power}}}",
                f"{value}e{power}",
                rf"{value}*10^{power}",
            ],
            [rf"{value} \times 10^{power + 1}", rf"{value} \times 10^{{-{power}}}"] if value else [],
        )
    elif abs(value) > 1:
        whole, rest = divmod(abs(value.numerator), value.denominator)
        sign = "-" if value < 0 else ""
        right += [rf"{sign}{whole}\frac{{{rest}}}{{{value.denominator}}}", f"{sign}{whole} {rest}/{value.denominator}"]
    if written := decimal(value):
        right += [written, written + ("0" if "." in written else ".00")]
    wrong = [
        number(value + 1),
        number(-value - 1) if value != Fraction(-1, 2) else number(value + 2),
        number(value + Fraction(1, 10)),
        number(value * 10 + 1),
    ]
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
        rng,
        rf"{a}\sqrt{{{b}}}",
        [rf"\sqrt{{{a * a * b}}}", rf"\frac{{{a * b}}}{{\sqrt{{{b}}}}}", rf"\sqrt{{{b}}}\cdot {a}"],
        [rf"\sqrt{{{a * b}}}", rf"{a}\sqrt[3]{{{b}}}", rf"{a + 1}\sqrt{{{b}}}", rf"{a}\sqrt{{{b + 1}}}", str(a * b)],
    )
    yield from both(
        rng,
        rf"{c}+{a}\sqrt{{{b}}}",
        [rf"{a}\sqrt{{{b}}}+{c}", rf"{c}+\sqrt{{{a * a * b}}}"],
        [
            rf"{c}-{a}\sqrt{{{b}}}",
            rf"{a}+{c}\sqrt{{{b}}}" if a != c else rf"{c + 1}+{a}\sqrt{{{b}}}",
            rf"({c}+{a})\sqrt{{{b}}}",
        ],
    )
    yield from both(
        rng,
        rf"\frac{{1}}{{\sqrt{{{b}}}}}",
        [
            rf"\frac{{\sqrt{{{b}}}}}{{{b}}}",
            rf"{b}^{{-1/2}}",
            rf"\dfrac{{\sqrt{b}}}{{{b}}}" if b < 10 else rf"{b}^{{-\frac12}}",
        ],
        [rf"\frac{{\sqrt{{{b}}}}}{{{b + 1}}}", rf"\sqrt{{{b}}}", rf"\frac{{1}}{{{b}}}"],
    )


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
        rng,
        factored,
        [
            expanded,
            f"({name}{signed(c)})({lead}{name}{signed(b)})",
            f"{signed(last)}{signed(middle)}{name}+{a}{name}^2",
        ],
        [other, f"({lead}{name}{signed(-b)})({name}{signed(c)})", expanded.replace(name, letter), str(a + b + c)],
    )
    yield from both(rng, expanded, [factored], [f"{lead}{name}^2{signed(middle)}{name}{signed(last - 1)}", f"{name}^3"])


def complex_numbers(rng: Random) -> Iterator[Pair]:
    a, b = rng.sample([n for n in range(-20, 21) if abs(n) > 1], 2)
    real = f"{a}{signed(b)}i"
    yield from both(
        rng,
        real,
        [f"{b}i{signed(a)}", f"{a}{signed(b)}*i", f"z = {real}", rf"{a} {signed(b)} \cdot i"],
        [f"{a}{signed(-b)}i", f"{b}{signed(a)}i", str(a), f"{a}{signed(b)}", f"{-a}{signed(b)}i"],
    )


def intervals(rng: Random) -> Iterator[Pair]:
    low, high = sorted(rng.sample(range(-30, 30), 2))
    left, right = rng.choice("(["), rng.choice(")]")
    sign = {"(": "<", ")": "<", "[": r"\le ", "]": r"\leq "}
    other = {"(": "[", "[": "("}[left]
    yield from both(
        rng,
        f"{left}{low}, {high}{right}",
        [
            f"{low} {sign[left]} x {sign[right]} {high}",
            f"x \\in {left}{low},{high}{right}",
            rf"\left{left}{low},{high}\right{right}",
        ],
        [
            f"{other}{low},{high}{right}",
            f"{left}{low},{high + 1}{right}",
            f"{left}{low - 1},{high}{right}",
            f"{low} {sign['[' if left == '(' else '(']} x {sign[right]} {high}",
            f"x {sign[right]} {high}",
        ],
    )
    strict = rng.random() < 0.5
    more, mirrored = (">", "<") if strict else (r"\ge ", r"\le ")
    yield from both(
        rng,
        f"x {more} {low}",
        [f"{low} {mirrored} x", rf"{'(' if strict else '['}{low}, \infty)", f"x{more}{low}.0"],
        [
            f"x {mirrored} {low}",
            f"x {more} {low + 1}",
            rf"{'[' if strict else '('}{low},\infty)",
            str(low),
            rf"(-\infty,{low})",
        ],
    )


def sets_and_lists(rng: Random) -> Iterator[Pair]:
    """The order of several values means nothing, their number does."""
    values = [str(n) for n in rng.sample(range(-40, 90), rng.randrange(2, 5))]
    shuffled = rng.sample(values, len(values))
    more = str(max(map(int, values)) + 1)
    last = ", ".join(shuffled[:-1]) + rf"\text{{ and }}{shuffled[-1]}"
    yield from both(
        rng,
        ", ".join(values),
        [
            ", ".join(shuffled),
            rf"\{{{', '.join(shuffled)}\}}",
            last,
            "; ".join(shuffled),
            r" \text{ or } ".join(f"x={v}" for v in shuffled),
        ],
        [", ".join(values[:-1]), ", ".join([*values, more]), ", ".join([*values[:-1], more]), values[0]],
    )


def tuples(rng: Random) -> Iterator[Pair]:
    values = [str(n) for n in rng.sample(range(-40, 90), rng.randrange(2, 4))]
    swapped = rng.choice([order for order in permutations(values) if list(order) != values])
    text = ", ".join(values)
    names = "(x, y)" if len(values) == 2 else "(x, y, z)"
    wrong = [f"({', '.join(swapped)})", f"({text}, 1)", f"({', '.join(values[:-1])}, {int(values[-1]) + 1})"]
    yield from both(
        rng, f"({text})", [rf"\left({text}\right)", f"{names} = ({text})", f"({text.replace(' ', '')})"], wrong
    )


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
    yield from both(
        rng, write(cells), [write(cells, "bmatrix"), write(cells).replace(" ", "").replace(r"\\", r" \\ ")], wrong
    )


def lines(rng: Random) -> Iterator[Pair]:
    """Equations of lines, and their multiples."""
    a, b, c = (rng.choice([n for n in range(-9, 10) if n]) for _ in range(3))
    k = rng.randrange(2, 6)

    def equation(a: int, b: int, c: int) -> str:
        return f"{a}x{signed(b)}y={c}"

    slope, height = Fraction(-a, b), Fraction(c, b)
    explicit = f"y = {fraction(slope)}x {'+' if height >= 0 else '-'} {fraction(abs(height))}"
    yield from both(
        rng,
        equation(a, b, c),
        [equation(k * a, k * b, k * c), equation(-a, -b, -c), explicit, f"{a}x{signed(b)}y{signed(-c)}=0"],
        [
            equation(a, b, c + 1),
            equation(a, -b, c),
            equation(a + 1 or 1, b, c) if a != -1 else equation(a - 1, b, c),
            "0=0",
            "x=x",
        ],
    )


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
        rng,
        f"{left}={right}",
        [f"{right}={left}", f"{left} = {right}"],
        [
            f"{other_left}={other_right}",
            "0=0",
            "1=1",
            f"{a}={a}",
            f"{n}+{m}={n + m}",
            f"{left}={left}",
            f"{right}={right}",
            f"{a}+{b}={b}+{a}",
        ],
    )


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        numbers,
        minus_and_mixed,
        surds,
        polynomials,
        complex_numbers,
        intervals,
        sets_and_lists,
        tuples,
        matrices,
        lines,
        identities,
    )
}
