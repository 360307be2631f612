"""Arithmetic problems and their scorer, both from reasoning-gym. Disjoint splits and difficulties are added here.

A problem is one expression of characters, so a prompt can contain it as text or as a picture.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from typing import Any, Literal, get_args

Split = Literal["train", "validation", "test"]
Family = Literal["chain_sum", "basic_arithmetic"]

FAMILIES: tuple[Family, ...] = get_args(Family)
SPLITS: tuple[Split, ...] = get_args(Split)
EXHAUSTED_AFTER = 20_000
"""Consecutive samples without a new expression after which a stream raises ValueError."""
SEED_STRIDE = 1_000_003
"""reasoning-gym seeds entry i with seed + i. Seeds this far apart keep two streams from sharing entries."""


@dataclass(frozen=True)
class Difficulty:
    """Ranges of terms in an expression and of digits in a number, both ends included, and whether brackets and negative
    operands are allowed.

    Raises ValueError for an empty range or one that starts below 1.
    """

    min_terms: int = 2
    max_terms: int = 4
    min_digits: int = 1
    max_digits: int = 1
    brackets: bool = False
    negatives: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("terms", self.min_terms, self.max_terms),
            ("digits", self.min_digits, self.max_digits),
        ):
            if not 1 <= low <= high:
                raise ValueError(f"min_{name}={low} and max_{name}={high}: give 1 <= min_{name} <= max_{name}")


DEFAULT_DIFFICULTY = Difficulty()


@dataclass(frozen=True)
class Problem:
    """One expression and its value. entry: the entry of reasoning-gym, which its scorer reads."""

    id: str
    family: Family
    expression: str
    answer: str
    terms: int
    digits: int
    entry: Mapping[str, Any]


def normalise(expression: str) -> str:
    """The expression without blanks. Its hash decides the split."""
    return "".join(expression.split())


def split_of(expression: str) -> Split:
    """The split an expression belongs to, by a hash of its normal form: 10 % test, 10 % validation, the rest train.

    The split depends on the expression alone, so the splits are disjoint for every seed and difficulty.
    """
    bucket = int.from_bytes(hashlib.sha256(normalise(expression).encode()).digest()[:8]) % 100
    if bucket < 10:
        return "test"
    return "validation" if bucket < 20 else "train"


def has_difficulty(expression: str, difficulty: Difficulty) -> bool:
    """Whether the brackets, the digits and the negative operands of an expression fit the difficulty.

    Nested brackets and brackets around the whole expression, as in ((3+4))-2 and (3-4), fit no difficulty:
    reasoning-gym generates both, and they mostly do not change the value.
    """
    if re.search(r"\([^)]*\(", expression) or re.fullmatch(r"\([^()]*\)", expression):
        return False
    if "(" in expression and not difficulty.brackets:
        return False
    if any(len(number) > difficulty.max_digits for number in re.findall(r"\d+", expression)):
        return False  # for reasoning-gym, one digit means numbers up to 10
    return difficulty.negatives or not re.search(r"(^|[-+(])-", expression)


def stream_problems(
    split: Split,
    *,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT_DIFFICULTY,
    families: Sequence[Family] = FAMILIES,
    distinct: bool = True,
) -> Iterator[Problem]:
    """Yield problems of one split without end, the families in turn. The same arguments give the same stream.

    distinct: skip expressions that came earlier in the stream. Raises ValueError for an unknown split or family, and
    when no new expression of this difficulty is found.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    datasets = [_dataset(family, difficulty, seed) for family in families]
    if not datasets:
        raise ValueError(f"families=() gives no problems; choose from {', '.join(FAMILIES)}")
    seen: set[str] = set()
    next_entries = [0] * len(families)
    for position in count():
        turn = position % len(families)
        for _ in range(EXHAUSTED_AFTER):
            entry = datasets[turn][next_entries[turn]]
            next_entries[turn] += 1
            metadata = entry["metadata"]
            expression = normalise(metadata["expression"])
            if (
                split_of(expression) == split
                and has_difficulty(expression, difficulty)
                and not (distinct and expression in seen)
            ):
                break
        else:
            raise ValueError(
                f"{difficulty} has only {position} distinct {split} expressions in {', '.join(families)}; "
                "ask for fewer, or raise max_terms or max_digits"
            )
        seen.add(expression)
        yield Problem(
            id=f"{split}-{position:06d}",
            family=families[turn],
            expression=expression,
            answer=entry["answer"],
            terms=metadata["num_terms"],
            digits=metadata["num_digits"],
            entry=entry,
        )


def sample_problems(
    split: Split,
    n: int,
    *,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT_DIFFICULTY,
    families: Sequence[Family] = FAMILIES,
    offset: int = 0,
) -> list[Problem]:
    """Problems offset to offset + n of the distinct stream of `stream_problems`. Raises what that raises."""
    return list(islice(stream_problems(split, seed=seed, difficulty=difficulty, families=families), offset, offset + n))


def score(problem: Problem, extracted: str | None) -> float:
    """reasoning-gym's score of an extracted answer, 0 to 1; 1 is correct."""
    return float(_dataset(problem.family, DEFAULT_DIFFICULTY, 0).score_answer(extracted, dict(problem.entry)))


@cache
def _dataset(family: Family, difficulty: Difficulty, seed: int) -> Any:
    # Imported here because it takes more than a second, and reading pictures or checkpoints does not need it. Where its
    # packages have no bytecode, compiling one of them warns of `is` with a literal.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym

    ranges = {
        "min_terms": difficulty.min_terms,
        "max_terms": difficulty.max_terms,
        "min_digits": difficulty.min_digits,
        "max_digits": difficulty.max_digits,
        "seed": seed * SEED_STRIDE,
    }
    if family == "chain_sum":
        return reasoning_gym.create_dataset("chain_sum", **ranges)
    if family == "basic_arithmetic":
        # Sums and differences, some with negative numbers. allow_negation would also put a minus before brackets.
        return reasoning_gym.create_dataset(
            "basic_arithmetic",
            operators=["+", "-"],
            allow_parentheses=difficulty.brackets,
            allow_negation=False,
            **ranges,
        )
    raise ValueError(f"family={family!r} is unknown; choose from {', '.join(FAMILIES)}")
