"""How fast is the verifier beside math-verify called in a loop, and what do poisonous inputs cost the healthy ones?

The service has two workers, is warm, keeps no results, and is sent batches of 256. math-verify runs in this process
on the same answers, without the text around them, which is the faster way to call it. Rounds of all contenders take
turns, and no item comes twice, as caches would answer for it; the figures are medians.

python benchmarks/verifier.py [--gsm8k FOLDER]

--gsm8k: a folder with test.jsonl of GSM8K, for numeric answers in real solutions; without it they are made here.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common import serving, show
from vold_client import AsyncVerifierClient, Item, ItemBudget

BATCH, ROUNDS = 256, 5
NUMERIC_ITEMS, SYMBOLIC_ITEMS, CHOICE_ITEMS = 16 * BATCH, 2 * BATCH, 20_000
ALONE_ITEMS = 96
"""Of which math-verify alone is given so many: enough for a rate."""
POISON_EVERY = 50


def numeric_items(gsm8k: Path | None, seed: int) -> list[Item]:
    """Solutions with a boxed number, every other one off by a little. The ids say which are right."""
    rng = random.Random(seed)
    if gsm8k is None:
        drawn = [round(10 ** rng.uniform(0, 6)) for _ in range(1319)]
        solved = [(f"Half of the {2 * n} apples are red. " * 8 + f"2 * {n} / 2 = {n}", str(n)) for n in drawn]
    else:
        rows = [json.loads(line)["answer"] for line in (gsm8k / "test.jsonl").read_text().splitlines()]
        solved = [(text.strip(), answer.strip()) for text, _, answer in (row.rpartition("####") for row in rows)]
    items = []
    for index in range(NUMERIC_ITEMS):
        text, reference = solved[index % len(solved)]
        value = int(reference.replace(",", ""))
        said = value if index % 2 else value + rng.randrange(1, 10)
        name = f"{'right' if index % 2 else 'wrong'}-{seed}-{index}"
        items.append(Item("math", f"{text} (sample {name})\nThe answer is \\boxed{{{said}}}.", reference, id=name))
    return items


def symbolic_items(seed: int) -> list[Item]:
    """Surds, fractions of expressions, polynomials, intervals, sets and points; half of them right, as the ids say."""
    rng = random.Random(seed)
    items = []
    for index in range(SYMBOLIC_ITEMS):
        a, b, c = rng.sample(range(3, 100), 3)
        gold, right, wrong = [
            (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\sqrt{{{a * a * b + 1}}}"),
            (
                f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}",
                f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b}}}",
                f"\\frac{{{a}\\sqrt{{{b}}}}}{{2}}",
            ),
            (f"(x+{a})(x-{b})", f"x^2+{a - b}x-{a * b}".replace("+-", "-"), f"x^2+{a + b}x-{a * b}"),
            (f"{a}x^2+{b}x", f"x({a}x+{b})", f"x({a}x-{b})"),
            (f"[{a}, {a + b})", f"{a} \\le x < {a + b}", f"{a} \\le x \\le {a + b}"),
            (f"\\{{{a}, {b}, {c}\\}}", f"{c}, {a}, {b}", f"{c}, {a}, {b + 1}"),
            (f"({a}, \\frac{{{b}}}{{2}})", f"({a}, {b / 2})", f"({b}, {a / 2})"),
            (f"{a}\\pi + {b}", f"{b} + {a}\\pi", f"{a} + {b}\\pi"),
        ][index % 8]
        said = right if index // 8 % 2 else wrong
        name = f"{'right' if said == right else 'wrong'}-{seed}-{index}"
        text = f"We find it step by step (sample {name}).\nSo it is \\boxed{{{said}}}."
        items.append(Item("math", text, gold, id=name))
    return items


def poison() -> list[str]:
    """Answers that ruin a checker which evaluates them, or reads them carelessly."""
    return [
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{2**9**9**9}",
        "x" * (1 << 20),
        r"\boxed{" + "(" * 10_000 + "1" + ")" * 10_000 + "}",
        r"\boxed{" + "{" * 10_000 + "1" + "}" * 10_000 + "}",
        r"\boxed{99999999!}",
        r"\boxed{(((70!)!)!)!}",
        "\\boxed{1\x00" + "\x00" * 1000 + "}",
        "\n".join(["**" * 400 + "the answer" + " " * 400] * 20) + r"\boxed{" + "a" * 5000 + "!}",
        "answer" + "is " * 5000 + ":" + "-" * 5000,
    ]


def with_poison(items: Sequence[Item]) -> list[Item]:
    """`items` with one poisonous item after each 49 (2 %), all kinds in turn."""
    texts, mixed, added = poison(), [], 0
    for index, item in enumerate(items, 1):
        mixed.append(item)
        if index % (POISON_EVERY - 1) == 0:
            mixed.append(Item("math", texts[added % len(texts)], item.reference, id=f"poison-{index}"))
            added += 1
    return mixed


def math_verify_alone(items: Sequence[Item]) -> int:
    """How many of the items it calls right, one after another, with its own time limits as they come."""
    from math_verify import parse, verify

    def answer(text: str) -> str:
        return text[text.rindex("\\boxed") :].rstrip(".")

    return sum(bool(verify(parse(f"\\boxed{{{item.reference}}}"), parse(answer(item.completion)))) for item in items)


def choice_in_process() -> Callable[[], int]:
    from vold_verifier.verifiers.base import Item as Checked
    from vold_verifier.verifiers.choice import ChoiceParameters, ChoiceVerifier

    verifier, options = ChoiceVerifier(), {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}
    parameters = ChoiceParameters(options=options)
    thought = "<think>" + "The capital of Italy is older than that of Norway. " * 10 + "</think>"
    said = [r"So it is \boxed{%s}.", "The answer is (%s).", "Answer: %s", "%s", "I would go with %s, for it is old."]
    items = [Checked(thought + said[index % 5] % "ABCD"[index % 4], "B") for index in range(CHOICE_ITEMS)]
    return lambda: sum(verifier.check(item, parameters).correct for item in items)


def timed(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    assert work() > 0
    return time.perf_counter() - began


async def through(url: str, items: Sequence[Item]) -> float:
    """Seconds for `items`. Every healthy one must get the reward that it was made for."""
    async with AsyncVerifierClient(url, timeout=300, budget=ItemBudget(items=BATCH)) as client:
        await client.list_verifiers()
        began = time.perf_counter()
        verdicts = await client.verify(items)
        seconds = time.perf_counter() - began
    for item, verdict in zip(items, verdicts, strict=True):
        if not item.id.startswith("poison"):
            assert verdict.reward == item.id.startswith("right"), verdict
    return seconds


def measure(name: str, made: Callable[[int], list[Item]]) -> Iterator[list[str]]:
    """made: items for a seed."""
    times: dict[str, list[float]] = {"math-verify": [], "service": [], "poison": []}
    with serving("verifier", "--workers", "2", "--cache-bytes", "0") as urls:
        asyncio.run(through(urls["grpc"], made(0)))
        for number in range(1, ROUNDS + 1):
            clean, others = made(2 * number), made(2 * number + 1)
            alone = clean[:ALONE_ITEMS]
            times["math-verify"].append(timed(lambda: math_verify_alone(alone)) / len(alone))  # noqa: B023
            times["service"].append(asyncio.run(through(urls["grpc"], clean)) / len(clean))
            times["poison"].append(asyncio.run(through(urls["grpc"], with_poison(others))) / len(others))
    median = {what: statistics.median(found) for what, found in times.items() if found}
    base = median["math-verify"]
    for what, seconds in median.items():
        ratio = f"{base / seconds:.1f}x"
        kept = f"{median['service'] / seconds:.0%}" if what == "poison" else ""
        label = {"poison": "service, healthy items beside 2 % poison"}.get(what, what)
        yield [name, label, f"{1 / seconds:,.0f}", ratio, kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="folder with GSM8K's test.jsonl")
    given = parser.parse_args()
    source = "numeric, GSM8K" if given.gsm8k else "numeric"
    rows = [*measure(source, lambda seed: numeric_items(given.gsm8k, seed)), *measure("symbolic", symbolic_items)]
    choice = choice_in_process()
    timed(choice)
    rate = CHOICE_ITEMS / statistics.median(timed(choice) for _ in range(ROUNDS))
    rows.append(["choice", "in process, one core", f"{rate:,.0f}", "", ""])
    show(
        f"The verifier, batches of {BATCH}, 2 workers, 2 cores, median of {ROUNDS}",
        ["answers", "checked by", "items/s", "to math-verify", "of the clean rate"],
        rows,
    )


if __name__ == "__main__":
    main()
