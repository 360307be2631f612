"""The verdicts of a running verifier on pairs that are right or wrong by construction, by kind.

python benchmarks/labelled_pairs.py [--count 200] [--seed 1] [--kind NAME ...] [--show]

The pairs are those of tests/helpers/verifier_pairs.py, whose constructors share no code with the verifier. The service
runs with its defaults, and with `code`. --show prints every verdict that is not right. The exit status is 1 if more
than 0.5 % of all pairs are wrongly paid, or fewer than 95 % right.
"""

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from common import serving, show
from verifier_pairs import Pair, draw
from verifier_pairs_kinds import KINDS
from vold_client import AsyncVerifierClient, Item, Verdict

OUTCOMES = ("right", "wrongly paid", "wrongly refused", "no verdict")
MAX_WRONGLY_PAID, MIN_RIGHT = 0.005, 0.95


def outcome(pair: Pair, verdict: Verdict) -> str:
    if verdict.reward is None:
        return "no verdict"
    if (verdict.reward > 0) == pair.paid:
        return "right"
    return "wrongly refused" if pair.paid else "wrongly paid"


async def verify(url: str, pairs: list[Pair]) -> list[Verdict]:
    items = [
        Item(pair.verifier, pair.completion, pair.reference, parameters=dict(pair.parameters), prompt=pair.prompt)
        for pair in pairs
    ]
    async with AsyncVerifierClient(url, timeout=600) as client:
        return await client.verify(items)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="pairs of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="repeatable")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    kinds = {name: kind for name, kind in KINDS.items() if not options.kind or name in options.kind}
    drawn = draw(kinds, options.count, options.seed)
    # A worker verifies an item slowly on a loaded machine, but no item of this set is slow in itself.
    limits = ("--time-limit", "5", "--hard-time-limit", "60")
    with serving("verifier", "--workers", "2", "--enable", "code", "--allow-weak-sandbox", *limits) as urls:
        verdicts = {name: asyncio.run(verify(urls["grpc"], pairs)) for name, pairs in drawn.items()}
    rows, total = [], Counter[str]()
    for name, pairs in drawn.items():
        outcomes = [outcome(pair, verdict) for pair, verdict in zip(pairs, verdicts[name], strict=True)]
        counts = Counter(outcomes)
        total += counts
        rows.append([name, str(len(pairs)), *(str(counts[each]) for each in OUTCOMES)])
        for pair, verdict, each in zip(pairs, verdicts[name], outcomes, strict=True) if options.show else ():
            if each != "right":
                reason = verdict.reason or verdict.error
                print(f"{name}, {each}: {pair.completion!r}, reference {pair.reference!r}: {reason}", file=sys.stderr)
    rows.append(
        ["all", str(total.total()), *(f"{total[each]} ({total[each] / total.total():.2%})" for each in OUTCOMES)]
    )
    show(f"Pairs by construction, seed {options.seed}", ["kind", "pairs", *OUTCOMES], rows)
    good = total["wrongly paid"] <= MAX_WRONGLY_PAID * total.total() and total["right"] >= MIN_RIGHT * total.total()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
