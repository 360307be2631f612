"""We-Math (Qiao et al. 2024, arXiv:2407.01284): problems of two and three steps; each step is also a problem.

The answers to a problem and to its steps show insufficient knowledge (the problem and a step are wrong), inadequate
generalization (only the problem is wrong), complete mastery (all are correct) or rote memorization (the problem is
correct but a step is wrong; in the loose definition, every step).
"""

import re
from collections.abc import Sequence

from vold_trainer.adapters.base import (
    ASK_LETTER,
    Adapter,
    BenchmarkRow,
    Metrics,
    Outcome,
    Question,
    Wording,
    choice_parameters,
    format_options,
)
from vold_trainer.data import Example

_KEY = re.compile(r"([23])steps_([123]|multi)")
_OPTION = re.compile(r"(?:^|;)\s*([A-H])\s*\.")
_NAMES = {2: "two-step", 3: "three-step"}
METRICS = (
    *("score_strict", "score_loose", "insufficient_knowledge", "inadequate_generalization"),
    *("complete_mastery_strict", "complete_mastery_loose", "rote_memorization_strict", "rote_memorization_loose"),
)


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    problem, key, option = row.text("ID"), row.text("key"), row.text("option")
    match = _KEY.fullmatch(key)
    if match is None:
        raise row.error("key", "give 2steps_1, 2steps_2, 2steps_multi, 3steps_1, ... or 3steps_multi")
    options = split_options(option)
    question = row.text("question")
    own_text = f"{question}\n{option}\nAnswer with the letter of the right option."
    return (
        Question()
        .add_image(row.image("image_path", "image"))
        .add_text(
            own_text
            if wording == "own"
            else f"{question}\n{format_options(options) if options else option}\n{ASK_LETTER}"
        )
        .make_example(
            f"{problem}/{key}",
            row.answer("answer", "give the letter of the right option"),
            "choice",
            choice_parameters(options) or {"letters": "ABCDEFGH"},
            category=_NAMES[int(match[1])] if match[2] == "multi" else "one-step",
            facets={"knowledge concept": row.optional_text("knowledge concept")},
            problem=problem,
            steps=int(match[1]),
            step=match[2],
        )
    )


def split_options(text: str) -> dict[str, str]:
    """Options of "A. 4; B. 3; E. No correct answer"; empty if their letters are not in order."""
    pieces = _OPTION.split(text)
    options = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    ordered = len(options) == len(pieces) // 2 and list(options) == sorted(options) and next(iter(options), "") == "A"
    return options if ordered and len(options) > 1 else {}


def _aggregate(outcomes: Sequence[Outcome]) -> Metrics:
    """Metrics over the problems whose steps are all present and verified. A score is 1 for mastery, 1/2 for inadequate
    generalization and 0 otherwise. Rote memorization is a share of the problems answered correctly.
    """
    problems: dict[tuple[str, int], dict[str, bool | None]] = {}
    for outcome in outcomes:
        meta = outcome.example.meta
        problems.setdefault((meta["problem"], meta["steps"]), {})[meta["step"]] = outcome.correct
    metrics: dict[str, list[float]] = {name: [] for name in METRICS}
    for (_, steps), verdicts in problems.items():
        if len(verdicts) != steps + 1 or None in verdicts.values():
            continue
        problem_correct = bool(verdicts["multi"])
        steps_correct = [bool(correct) for step, correct in verdicts.items() if step != "multi"]
        generalizes = 0.5 * (not problem_correct and all(steps_correct))
        for definition, mastered in (
            ("strict", problem_correct and all(steps_correct)),
            ("loose", problem_correct and any(steps_correct)),
        ):
            metrics[f"score_{definition}"].append(mastered + generalizes)
            metrics[f"complete_mastery_{definition}"].append(float(mastered))
            if problem_correct:
                metrics[f"rote_memorization_{definition}"].append(float(not mastered))
        metrics["insufficient_knowledge"].append(float(not problem_correct and not all(steps_correct)))
        metrics["inadequate_generalization"].append(float(not problem_correct and all(steps_correct)))
    return metrics


ADAPTER = Adapter(
    "wemath",
    "We-Math/We-Math",
    ("ID", "key", "question", "option", "image_path", "answer", "knowledge concept"),
    _make_example,
    _aggregate,
    alternative_columns=("image",),
)
