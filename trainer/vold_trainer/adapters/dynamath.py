"""DynaMath (Zou et al. 2024, arXiv:2411.00836): seed questions in variants; a seed counts where all variants are right.

Each of its splits, sample_variant1 to sample_variant10, holds one variant of every seed under the seed's id: read
them as one set. Its scorer takes JSON and asks a model where there is none; here the verifier reads the answer.
"""

from collections.abc import Sequence

from vold_trainer.adapters.base import (
    FREE,
    LETTER,
    UNMARKED,
    Adapter,
    Figures,
    Outcome,
    Question,
    Row,
    Wording,
    choice,
    options_in,
)
from vold_trainer.data import Example

TOLERANCE = 0.001
_THREE_PLACES = "Give a number that is not whole with three decimal places."


def _example(row: Row, wording: Wording) -> Example:
    asked, kind = row.text("question"), row.text("answer_type")
    chosen, number = kind == "multiple choice", kind in ("float", "int")
    seed = row.maybe("qid") or row.text("id")
    form = LETTER if chosen else f"{_THREE_PLACES} {FREE}"
    parameters: dict[str, object] = {"absolute_tolerance": TOLERANCE} if number else {}
    if number and wording == "own":
        parameters["accept"] = UNMARKED
    return (
        Question()
        .picture(row.image("decoded_image", "image"))
        .text(asked if wording == "own" else f"{asked}\n{form}")
        .example(
            seed,
            row.answer("ground_truth", "give the right answer"),
            "choice" if chosen else "numeric" if number else "math",
            choice(options_in(asked)) if chosen else parameters,
            category=" ".join(row.maybe("subject").split()),
            facets={"level": row.maybe("knowledge_level"), "answer_type": kind},
            seed=seed,
        )
    )


def _aggregate(outcomes: Sequence[Outcome]) -> Figures:
    """average: a value a seed, the share of its variants that are right. worst_case: 1 where all are, else 0.

    A seed with a variant that nobody could judge has no average, and a worst case only where another one is wrong.
    """
    seeds: dict[str, list[bool | None]] = {}
    for outcome in outcomes:
        seeds.setdefault(outcome.example.meta["seed"], []).append(outcome.correct)
    return {
        "average": [sum(map(bool, found)) / len(found) for found in seeds.values() if None not in found],
        "worst_case": [float(all(found)) for found in seeds.values() if None not in found or False in found],
    }


ADAPTER = Adapter(
    "dynamath",
    "DynaMath/DynaMath_Sample",
    ("id", "question", "decoded_image", "ground_truth", "answer_type", "subject", "knowledge_level"),
    _example,
    _aggregate,
    also=("image", "qid"),
)
