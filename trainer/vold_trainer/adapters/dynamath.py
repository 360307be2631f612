"""DynaMath (Zou et al. 2024, arXiv:2411.00836): seed questions in variants; its main metric needs all variants correct.

Each of its splits, sample_variant1 to sample_variant10, has one variant of every seed question, under the same id: read
the splits as one set. Its own scorer takes JSON, and asks a model if there is none; here, a verifier extracts
the answer.
"""

from collections.abc import Sequence

from vold_trainer.adapters.base import (
    ASK_ANSWER,
    ASK_LETTER,
    UNBOXED_FORMS,
    Adapter,
    BenchmarkRow,
    Metrics,
    Outcome,
    Question,
    Wording,
    choice_parameters,
    find_options,
)
from vold_trainer.data import Example

TOLERANCE = 0.001
_THREE_PLACES = "Give a number that is not whole with three decimal places."


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    question, answer_type = row.text("question"), row.text("answer_type")
    is_choice, is_number = answer_type == "multiple choice", answer_type in ("float", "int")
    seed = row.optional_text("qid") or row.text("id")
    instruction = ASK_LETTER if is_choice else f"{_THREE_PLACES} {ASK_ANSWER}"
    parameters: dict[str, object] = {"absolute_tolerance": TOLERANCE} if is_number else {}
    if is_number and wording == "own":
        parameters["accept"] = UNBOXED_FORMS
    return (
        Question()
        .add_image(row.image("decoded_image", "image"))
        .add_text(question if wording == "own" else f"{question}\n{instruction}")
        .make_example(
            seed,
            row.answer("ground_truth", "give the right answer"),
            "choice" if is_choice else "numeric" if is_number else "math",
            choice_parameters(find_options(question)) if is_choice else parameters,
            category=" ".join(row.optional_text("subject").split()),
            facets={"level": row.optional_text("knowledge_level"), "answer_type": answer_type},
            seed=seed,
        )
    )


def _aggregate(outcomes: Sequence[Outcome]) -> Metrics:
    """One value per seed question. average: the share of its variants that are correct. worst_case: 1 if all variants
    are correct, else 0.

    A seed question with an unverified variant has no average, and has a worst case only if another variant is wrong.
    """
    seeds: dict[str, list[bool | None]] = {}
    for outcome in outcomes:
        seeds.setdefault(outcome.example.meta["seed"], []).append(outcome.correct)
    return {
        "average": [sum(map(bool, verdicts)) / len(verdicts) for verdicts in seeds.values() if None not in verdicts],
        "worst_case": [
            float(all(verdicts)) for verdicts in seeds.values() if None not in verdicts or False in verdicts
        ],
    }


ADAPTER = Adapter(
    "dynamath",
    "DynaMath/DynaMath_Sample",
    ("id", "question", "decoded_image", "ground_truth", "answer_type", "subject", "knowledge_level"),
    _make_example,
    _aggregate,
    alternative_columns=("image", "qid"),
)
