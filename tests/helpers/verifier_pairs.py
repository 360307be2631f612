"""Labelled pairs of an answer and a reference, made by constructors that share no code with the verifier.

Each kind is a function that draws one value and yields pairs that are right or wrong by construction: the arithmetic is
that of Python's integers and fractions alone. `draw` makes a set with a number of pairs of each kind; the kinds are in
verifier_pairs_kinds.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any


@dataclass(frozen=True, slots=True)
class Pair:
    """One item for the verifier named `verifier`, and whether it is to be paid."""

    completion: str
    reference: str
    paid: bool
    verifier: str = "math"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""


Kind = Callable[[Random], Iterator[Pair]]

OPENINGS = (
    "So ",
    "Therefore the result is ",
    "We get ",
    "Putting it together, ",
    "",
    "Hence we have found that it equals ",
    "Step 3. Done.\n\n",
    "<think>Let me see. It could be 17.</think>\n\nThe result: ",
)


def boxed(rng: Random, answer: str) -> str:
    mark, end = rng.choice([("$", "$"), ("", ""), (r"\(", r"\)"), ("$$", "$$"), (r"\[", r"\]")])
    return rng.choice(OPENINGS) + mark + rf"\boxed{{{answer}}}" + end + rng.choice(["", ".", "\n"])


def both(rng: Random, reference: str, right: list[str], wrong: list[str]) -> Iterator[Pair]:
    """Pairs of `math` for answers in boxes."""
    for paid, answers in ((True, right), (False, wrong)):
        for answer in answers:
            yield Pair(boxed(rng, answer), reference, paid)


def draw(kinds: Mapping[str, Kind], count: int, seed: int) -> dict[str, list[Pair]]:
    """`count` different pairs of each kind."""
    drawn: dict[str, list[Pair]] = {}
    for name, kind in kinds.items():
        rng = Random(f"{seed} {name}")
        pairs: dict[tuple[str, str, str], Pair] = {}
        for _ in range(40 * count):
            pairs |= {(pair.completion, pair.reference, repr(pair.parameters)): pair for pair in kind(rng)}
            if len(pairs) >= count:
                break
        drawn[name] = list(pairs.values())[:count]
    return drawn
