"""Pairs of the verifiers beside `math`: choices, numeric, lists, JSON, yes and no, programs. See verifier_pairs.py."""

import json
from collections.abc import Iterator
from fractions import Fraction
from random import Random

from verifier_pairs import Kind, Pair
from verifier_pairs_numbers import number
from verifier_pairs_places import reasoning

OPTIONS = (
    ("Paris", "Rome", "Oslo", "Bern"),
    ("iron", "copper", "silver", "lead"),
    ("12", "15", "18", "21"),
    ("x", "y", "z", "w"),
    ("increases", "decreases", "stays the same", "cannot be determined"),
    ("7", "8", "9", "5"),
    ("red", "green", "blue", "grey"),
    (r"$\frac{1}{2}$", r"$\frac{1}{3}$", r"$\frac{1}{4}$", r"$\frac{1}{5}$"),
    ("mitosis", "meiosis", "osmosis", "diffusion"),
)
NAMING = (
    "Answer: {}",
    "**Answer: {}**",
    "The answer is ({}).",
    "The answer is {}.",
    r"\boxed{{{}}}",
    r"So it is \boxed{{\text{{{}}}}}.",
    "({})",
    "<answer>{}</answer>",
    "The correct option is {}.",
    "I would choose option {}.",
    "Therefore, the correct answer is **{}**.",
    "Final Answer: ({})",
    "故选{}",
    "故选：{}。",
    "答案：{}",
    "正确答案是{}。",
    "选{}",
    "정답: {}",
    "Ответ: {}",
    "Respuesta: {}",
    "#### {}",
    "Hence option {} is correct.",
    "{} is correct.",
    "So the answer must be {}.",
    "**{}**",
    "Option {}",
    "My answer: {}",
)
HEDGES = (
    "Answer: {0}. Wait, that is wrong; it should be {1}.",
    "Answer: {0}. No, actually {1}.",
    "Answer: {0}, no, {1}",
    "Answer: {0} → {1}",
    "Answer: {0}. Correction: {1}.",
    "The answer is {0}. Hmm, on second thought it is {1}.",
    "Answer: {0}. Sorry, I meant {1}.",
    "Answer: not {0} but {1}",
    "Answer: {0}? No: {1}.",
    "The answer is not {0} but {1}.",
)
OPEN = (
    "Answer: {0} (or {1})",
    "Answer: {0} or {1}",
    "The answer is {0} or {1}.",
    r"\boxed{{{0}, {1}}}",
    r"\boxed{{{0} \text{{ or }} {1}}}",
    "Answer: {0}/{1}",
    "Answer: either {0} or {1}",
    "Answer: {0}, or maybe {1}",
    "选{0}或{1}",
    "Answer: {0} and {1}",
    "Answer: {0}, {1}",
    "Answer: {0}. But {1} is also possible.",
    "Answer: {0}; alternatively {1}",
)


def draw_options(rng: Random) -> tuple[dict[str, str], str, str]:
    """(options, the right letter, a wrong one)."""
    texts = rng.sample(rng.choice(OPTIONS), 4)
    right, wrong = rng.sample("ABCD", 2)
    return dict(zip("ABCD", texts, strict=True)), right, wrong


def choices(rng: Random) -> Iterator[Pair]:
    """Options by letter and by text, in many sentences."""
    options, right, wrong = draw_options(rng)
    for paid, letter in ((True, right), (False, wrong)):
        text = options[letter].strip("$")
        named = rng.choice([letter, letter, letter, f"{letter}. {text}", f"{letter}) {text}", f"{letter}: {text}"])
        form = rng.choice(NAMING)
        if named != letter:
            form = rng.choice(
                ["Answer: {}", "**Answer: {}**", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "Final Answer: {}"]
            )
        yield Pair(f"{reasoning(rng)}\n{form.format(named)}", right, paid, "choice", {"options": options})


def option_texts(rng: Random) -> Iterator[Pair]:
    """Options by their text alone, also of one character."""
    options, right, wrong = draw_options(rng)
    for paid, letter in ((True, right), (False, wrong)):
        form = rng.choice([r"\boxed{{{}}}", "Answer: {}", "<answer>{}</answer>", "**Answer:** {}"])
        yield Pair(f"{reasoning(rng)}\n{form.format(options[letter])}", right, paid, "choice", {"options": options})


def corrections(rng: Random) -> Iterator[Pair]:
    """A correction on the same line counts, a hedge is no answer."""
    options, right, wrong = draw_options(rng)
    form, hedge = rng.choice(HEDGES), rng.choice(OPEN)
    yield Pair(f"{reasoning(rng)}\n{form.format(wrong, right)}", right, True, "choice", {"options": options})
    yield Pair(f"{reasoning(rng)}\n{form.format(right, wrong)}", right, False, "choice", {"options": options})
    yield Pair(f"{reasoning(rng)}\n{hedge.format(right, wrong)}", right, False, "choice", {"options": options})
    yield Pair(f"{reasoning(rng)}\n{hedge.format(wrong, right)}", right, False, "choice", {"options": options})


def choice_boxes(rng: Random) -> Iterator[Pair]:
    """A formula in a box hides no later answer line."""
    options, right, wrong = draw_options(rng)
    formula = rng.choice([r"E \ll kT", "v = at", "x > 3", r"\lambda = h/p", "pV = nRT", "2x+1"])
    for paid, letter in ((True, right), (False, wrong)):
        line = rng.choice(["**Answer: {}**", "Answer: {}", "Final answer: {}", "The answer is {}.", "#### {}"]).format(
            letter
        )
        yield Pair(
            f"We use \\boxed{{{formula}}} here. {reasoning(rng)}\n\n{line}", right, paid, "choice", {"options": options}
        )


def multi_choices(rng: Random) -> Iterator[Pair]:
    """Sets of options."""
    texts = rng.sample(rng.choice(OPTIONS[:2]), 4)
    options = dict(zip("ABCD", texts, strict=True))
    first, second = sorted(rng.sample("ABCD", 2))
    other = rng.choice([letter for letter in "ABCD" if letter not in (first, second)])
    reference, parameters = f"{first}, {second}", {"options": options}
    for sentence in (
        f"Both {first} and {second} are correct.",
        f"Answer: {second} and {first}",
        f"\\boxed{{{first}{second}}}",
        f"故选{first}{second}。",
        f"The correct options are {first} and {second}.",
        f"<answer>{first}, {second}</answer>",
        f"\\boxed{{\\text{{{second}, {first}}}}}",
        f"Answers: {first}, {second}",
        f"Options {first} and {second} are both true.",
    ):
        if rng.random() < 0.5:
            yield Pair(f"{reasoning(rng)}\n{sentence}", reference, True, "multi-choice", parameters)
            wrong = sentence.replace(second, "#").replace(first, second).replace("#", other)
            yield Pair(f"{reasoning(rng)}\n{wrong}", reference, False, "multi-choice", parameters)
    for sentence in (
        f"Neither {first} nor {second} is correct.",
        f"Answer: {first}",
        f"Answer: {first}, {second}, or {other}",
        f"\\boxed{{{first}{second}{other}}}",
        f"Answer: {first} or {second}",
    ):
        if rng.random() < 0.5:
            yield Pair(f"{reasoning(rng)}\n{sentence}", reference, False, "multi-choice", parameters)


# -- numeric, list, json, boolean


def numeric_spellings(rng: Random) -> Iterator[Pair]:
    """One-letter units, about, program notation, powers of ten."""
    value = Fraction(rng.randrange(11, 9999), rng.choice([1, 10, 100]))
    text, other = number(value), number(value + Fraction(1, 10))
    unit = rng.choice(["N", "J", "m", "s", "V", "W", "g", "kg", "m/s", "Pa", "mol", "K", "A"])
    power = rng.randrange(2, 9)
    forms = [
        "{} " + unit,
        r"{}\text{{ " + unit + "}}",
        r"\approx {}",
        r"\approx {}\text{{ " + unit + "}}",
        "about {}",
        "approximately {}",
        "x = {}",
        "~{}",
        r"{}\ \mathrm{{" + unit + "}}",
        r"+{}",
    ]
    for paid, shown in ((True, text), (False, other)):
        form = rng.choice(forms)
        yield Pair(f"{reasoning(rng)}\n\\boxed{{{form.format(shown)}}}", text, paid, "numeric")
        scientific = rng.choice(["{}*10**{}", r"{}\times 10^{{{}}}", "{}e{}", "{}*10^{}", r"{} \cdot 10^{}"])
        yield Pair(f"\\boxed{{{scientific.format(shown, power)}}}", number(value * 10**power), paid, "numeric")


def numeric_tolerances(rng: Random) -> Iterator[Pair]:
    """Within a relative tolerance of the reference, or beyond it."""
    value, tolerance = (
        Fraction(rng.randrange(1000, 99999), rng.choice([1, 10, 100])),
        rng.choice(["0.01", "0.05", "0.001"]),
    )
    share = Fraction(tolerance)
    for factor, paid in (
        (Fraction(9, 10), True),
        (Fraction(-9, 10), True),
        (Fraction(12, 10), False),
        (Fraction(-12, 10), False),
    ):
        near = value * (1 + share * factor)
        shown = number(Fraction(round(near * 10**6), 10**6))
        verifier = rng.choice(["numeric", "math"])
        yield Pair(f"\\boxed{{{shown}}}", number(value), paid, verifier, {"relative_tolerance": float(share)})


def lists(rng: Random) -> Iterator[Pair]:
    """Items in any order, or in order."""
    words = rng.sample(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"], rng.randrange(2, 5))
    mixed = rng.sample(words, len(words))
    joint = rng.choice([", ", "; "])
    reference = ", ".join(words)
    shapes = (
        lambda items: json.dumps(items),
        lambda items: joint.join(items),
        lambda items: "\n".join(f"- {item}" for item in items),
    )
    shape = rng.choice(shapes)
    for ordered in (False, True):
        parameters = {"ordered": ordered}
        for items, paid in (
            (words, True),
            (mixed, not ordered or mixed == words),
            (words[:-1], False),
            ([*words, "zebu"], False),
        ):
            yield Pair(f"<answer>{shape(items)}</answer>", reference, paid, "list", parameters)


def json_blocks(rng: Random) -> Iterator[Pair]:
    """The json block counts, whatever blocks stand before it."""
    value = {
        "name": rng.choice(["ada", "bob", "eve"]),
        "n": rng.randrange(1000),
        "tags": rng.sample(["x", "y", "z"], 2),
    }
    wrong = {**value, "n": value["n"] + 1}
    reference = json.dumps(value)
    before = rng.choice(
        ["", "```python\nx = {}\n```\n", "```\nnotes\n```\n", "~~~bash\nls\n~~~\n", "First I read the text.\n"]
    )
    for paid, answer in ((True, value), (False, wrong)):
        shown = json.dumps(dict(rng.sample(sorted(answer.items()), len(answer))), indent=rng.choice([None, 2]))
        yield Pair(f"{before}```json\n{shown}\n```", reference, paid, "json")
        yield Pair(f"<answer>{shown}</answer>", reference, paid, "json")
    yield Pair(f"```json\n{reference}\n```\n```json\n{json.dumps(wrong)}\n```", reference, False, "json")
    yield Pair(f"```json\n{reference[:-1]}\n```", reference, False, "json")


def booleans(rng: Random) -> Iterator[Pair]:
    right, wrong = rng.sample([("Yes", "True", "yes", "true"), ("No", "False", "no", "false")], 2)
    form = rng.choice(
        [
            "Answer: {}",
            r"\boxed{{{}}}",
            r"\boxed{{\text{{{}}}}}",
            "<answer>{}</answer>",
            "**Answer:** {}.",
            "The answer is {}.",
            "Final answer: **{}**",
        ]
    )
    reference = rng.choice(right)
    yield Pair(f"{reasoning(rng)}\n{form.format(rng.choice(right))}", reference, True, "boolean")
    yield Pair(f"{reasoning(rng)}\n{form.format(rng.choice(wrong))}", reference, False, "boolean")
    yield Pair(f"{reasoning(rng)}\n{form.format('Yes or no')}", reference, False, "boolean")


# -- code


def programs(rng: Random) -> Iterator[Pair]:
    """Integers are compared as integers, and examples after the program are no program."""
    n, m = rng.randrange(10**6, 10**17), rng.randrange(2, 50)
    tests = json.dumps([{"call": "f", "args": [x], "expected": n + m * x} for x in (0, 1, rng.randrange(2, 99))])
    body = rng.choice(
        [f"return {n} + {m} * x", f"total = {n}\n    for _ in range({m}):\n        total += x\n    return total"]
    )
    wrong = rng.choice(
        [
            f"return {n + 1} + {m} * x",
            f"return {n} + {m + 1} * x",
            f"return {m} * x + {n} - 1",
            f"return str({n} + {m} * x)",
        ]
    )
    after = rng.choice(
        [
            "",
            "\nExample:\n```python\nprint(f(1))\n```",
            "\nOutput:\n```text\n3\n```",
            "\n```\n>>> f(0)\n```",
            "\nUsage:\n```python\nx = f(2)\nprint(x)\n```",
        ]
    )
    before = rng.choice(["", "```bash\npip install numpy\n```\n", "Here is the program.\n"])
    for paid, text in ((True, body), (False, wrong)):
        yield Pair(f"{before}```python\ndef f(x):\n    {text}\n```{after}", tests, paid, "code")


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        choices,
        option_texts,
        corrections,
        choice_boxes,
        multi_choices,
        numeric_spellings,
        numeric_tolerances,
        lists,
        json_blocks,
        booleans,
        programs,
    )
}
