"""The throughput of the verifier and of math-verify called in a loop, and the effect of poison items on other items.

The service has two workers, is warmed up, has no cache, and gets batches of 256. math-verify runs in this process on
the same answers without the text around them, which is its faster use. Rounds alternate between the contenders, and no
item is repeated, so that no cache helps. The figures are medians.

python benchmarks/verifier.py [--gsm8k FOLDER] [--against CHECKOUT]

--gsm8k: a folder with GSM8K's test.jsonl, for numeric answers in real solutions; without it, synthetic solutions.
--against: the same service of another checkout (`git worktree add CHECKOUT COMMIT`), and nothing else. Each turn starts
both, and the table begins with their first verdicts; then they get the same batches in turns.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from common import environment_of, serving, show
from vold_client import AsyncVerifierClient, Item, ItemBudget, Verdict

BATCH, ROUNDS, TURNS = 256, 5, 7
NUMERIC_ITEMS, SYMBOLIC_ITEMS, CHOICE_ITEMS = 64 * BATCH, 4 * BATCH, 20_000
ALONE_ITEMS = 96
"""The number of items for math-verify alone: enough for a rate."""
POISON_EVERY = 50


def numeric_items(gsm8k: Path | None, seed: int) -> list[Item]:
    """Solutions with a boxed number, every other one slightly wrong. An item's id says whether it is right."""
    rng = random.Random(seed)
    if gsm8k is None:
        numbers = [round(10 ** rng.uniform(0, 6)) for _ in range(1319)]
        solved = [(f"Half of the {2 * n} apples are red. " * 8 + f"2 * {n} / 2 = {n}", str(n)) for n in numbers]
    else:
        rows = [json.loads(line)["answer"] for line in (gsm8k / "test.jsonl").read_text().splitlines()]
        solved = [(text.strip(), answer.strip()) for text, _, answer in (row.rpartition("####") for row in rows)]
    items = []
    for index in range(NUMERIC_ITEMS):
        text, reference = solved[index % len(solved)]
        value = int(reference.replace(",", ""))
        answer = value if index % 2 else value + rng.randrange(1, 10)
        name = f"{'right' if index % 2 else 'wrong'}-{seed}-{index}"
        items.append(Item("math", f"{text} (sample {name})\nThe answer is \\boxed{{{answer}}}.", reference, id=name))
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
        answer = right if index // 8 % 2 else wrong
        name = f"{'right' if answer == right else 'wrong'}-{seed}-{index}"
        text = f"We find it step by step (sample {name}).\nSo it is \\boxed{{{answer}}}."
        items.append(Item("math", text, gold, id=name))
    return items


def poison_texts() -> list[str]:
    """Answers that block or crash a checker that evaluates them, or that parses them carelessly."""
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
    """`items` with one poison item after every 49 (2 %), all kinds in turn."""
    texts, mixed, added = poison_texts(), [], 0
    for index, item in enumerate(items, 1):
        mixed.append(item)
        if index % (POISON_EVERY - 1) == 0:
            mixed.append(Item("math", texts[added % len(texts)], item.reference, id=f"poison-{index}"))
            added += 1
    return mixed


def math_verify_alone(items: Sequence[Item]) -> int:
    """The number of items that math-verify calls right, one after another, with its default time limits."""
    from math_verify import parse, verify

    def answer(text: str) -> str:
        return text[text.rindex("\\boxed") :].rstrip(".")

    return sum(bool(verify(parse(f"\\boxed{{{item.reference}}}"), parse(answer(item.completion)))) for item in items)


def choice_in_process() -> Callable[[], int]:
    from vold_verifier.verifiers.base import Item as VerifierItem
    from vold_verifier.verifiers.choice import ChoiceParameters, ChoiceVerifier

    verifier, options = ChoiceVerifier(), {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}
    parameters = ChoiceParameters(options=options)
    thought = "<think>" + "The capital of Italy is older than that of Norway. " * 10 + "</think>"
    answers = [r"So it is \boxed{%s}.", "The answer is (%s).", "Answer: %s", "%s", "I would go with %s, for it is old."]
    items = [VerifierItem(thought + answers[index % 5] % "ABCD"[index % 4], "B") for index in range(CHOICE_ITEMS)]
    return lambda: sum(verifier.check(item, parameters).correct for item in items)


def timed(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    assert work() > 0
    return time.perf_counter() - start


def check(items: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
    """Assert that every item except poison has its expected reward."""
    for item, verdict in zip(items, verdicts, strict=True):
        if not item.id.startswith("poison"):
            assert verdict.reward == item.id.startswith("right"), verdict


async def time_service(url: str, items: Sequence[Item]) -> float:
    """Seconds for `items`."""
    async with AsyncVerifierClient(url, timeout=300, budget=ItemBudget(items=BATCH)) as client:
        await client.list_verifiers()
        start = time.perf_counter()
        verdicts = await client.verify(items)
        seconds = time.perf_counter() - start
    check(items, verdicts)
    return seconds


async def time_in_turns(urls: Mapping[Path | None, str], items: Sequence[Item]) -> dict[Path | None, float]:
    """Seconds of each service for `items`: a batch on one, the same on the other, and so on, so that other load on the
    machine meets both alike.
    """
    seconds = dict.fromkeys(urls, 0.0)
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            tree: await stack.enter_async_context(AsyncVerifierClient(url, timeout=300)) for tree, url in urls.items()
        }
        for client in clients.values():
            await client.list_verifiers()
        for number, start in enumerate(range(0, len(items), BATCH)):
            batch = items[start : start + BATCH]
            for tree in reversed(clients) if number % 2 else clients:
                began = time.perf_counter()
                verdicts = await clients[tree].verify(batch)
                seconds[tree] += time.perf_counter() - began
                check(batch, verdicts)
    return seconds


def measure(name: str, make_items: Callable[[int], list[Item]]) -> Iterator[list[str]]:
    """The table's rows for one kind of items. make_items: returns the items for a seed."""
    times: dict[str, list[float]] = {"math-verify": [], "service": [], "poison": []}
    with serving("verifier", "--workers", "2", "--cache-bytes", "0") as urls:
        asyncio.run(time_service(urls["grpc"], make_items(0)))
        for number in range(1, ROUNDS + 1):
            clean, others = make_items(2 * number), make_items(2 * number + 1)
            alone = clean[:ALONE_ITEMS]
            times["math-verify"].append(timed(lambda: math_verify_alone(alone)) / len(alone))  # noqa: B023
            times["service"].append(asyncio.run(time_service(urls["grpc"], clean)) / len(clean))
            times["poison"].append(asyncio.run(time_service(urls["grpc"], with_poison(others))) / len(others))
    medians = {contender: statistics.median(seconds) for contender, seconds in times.items() if seconds}
    base = medians["math-verify"]
    for contender, seconds in medians.items():
        ratio = f"{base / seconds:.1f}x"
        share = f"{medians['service'] / seconds:.0%}" if contender == "poison" else ""
        label = {"poison": "service, healthy items beside 2 % poison"}.get(contender, contender)
        yield [name, label, f"{1 / seconds:,.0f}", ratio, share]


def choice_rate() -> float:
    """Items a second, the median of ROUNDS."""
    choice = choice_in_process()
    timed(choice)
    return CHOICE_ITEMS / statistics.median(timed(choice) for _ in range(ROUNDS))


def choice_rate_of(tree: Path | None) -> float:
    """`choice_rate` with the packages of a checkout."""
    command = [sys.executable, __file__, "--choice"]
    ran = subprocess.run(command, env=environment_of(tree), capture_output=True, text=True, check=True)
    return float(ran.stdout)


def one_turn(trees: Sequence[Path | None], number: int, gsm8k: Path | None) -> dict[str, dict[Path | None, float]]:
    """Items a second of each kind by checkout, from services that have just started in the order of `trees`, and
    verdicts a second of their first items.
    """
    rates: dict[str, dict[Path | None, float]] = {"starts": {}, "first 8 symbolic answers": {}}
    urls: dict[Path | None, str] = {}
    first = symbolic_items(number + 1000)[:8]
    numeric, symbolic = numeric_items(gsm8k, number), symbolic_items(number)
    with contextlib.ExitStack() as services:
        for tree in trees:
            began = time.perf_counter()
            urls[tree] = services.enter_context(serving("verifier", "--workers", "2", "--cache-bytes", "0", tree=tree))[
                "grpc"
            ]
            rates["starts"][tree] = 1 / (time.perf_counter() - began)
            rates["first 8 symbolic answers"][tree] = len(first) / asyncio.run(time_service(urls[tree], first))
        asyncio.run(time_in_turns(urls, [*numeric[:BATCH], *symbolic_items(number + 2000)[:BATCH]]))
        for name, items in (("numeric", numeric), ("symbolic", symbolic), ("poison", with_poison(numeric))):
            seconds = asyncio.run(time_in_turns(urls, items))
            rates[name] = {tree: len(items) / spent for tree, spent in seconds.items()}
    rates["choice, in process"] = {tree: choice_rate_of(tree) for tree in trees}
    return rates


def compare(tree: Path, gsm8k: Path | None) -> None:
    for each in (None, tree):
        with serving("verifier", tree=each):  # keeps its bytecode
            pass
    turns = [one_turn((None, tree) if number % 2 else (tree, None), number, gsm8k) for number in range(TURNS)]
    rows = []
    for name in turns[0]:
        pairs = [(turn[name][None], turn[name][tree]) for turn in turns]
        mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(x / y for x, y in pairs)
        rows.append(
            [
                name,
                f"{mine:,.3g}",
                f"{other:,.3g}",
                f"{statistics.median(ratios):.2f}",
                " ".join(f"{r:.2f}" for r in ratios),
            ]
        )
    show(
        f"The verifier against another checkout, {TURNS} turns",
        ["", "here, 1/s", "there, 1/s", "here / there", "of each turn"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="folder with GSM8K's test.jsonl")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with the service of another checkout")
    parser.add_argument("--choice", action="store_true", help=argparse.SUPPRESS)  # what `one_turn` runs
    options = parser.parse_args()
    if options.choice:
        print(choice_rate())
        return
    if options.against:
        compare(options.against.resolve(), options.gsm8k)
        return
    source = "numeric, GSM8K" if options.gsm8k else "numeric"
    rows = [*measure(source, lambda seed: numeric_items(options.gsm8k, seed)), *measure("symbolic", symbolic_items)]
    rows.append(["choice", "in process, one core", f"{choice_rate():,.0f}", "", ""])
    show(
        f"The verifier, batches of {BATCH}, 2 workers, 2 cores, median of {ROUNDS}",
        ["answers", "checked by", "items/s", "to math-verify", "of the clean rate"],
        rows,
    )


if __name__ == "__main__":
    main()
