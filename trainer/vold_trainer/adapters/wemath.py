"""We-Math (Qiao et al. 2024, arXiv:2407.01284): problems of two and three steps, with each step as a problem too.

What a student makes of a problem and of its steps tells insufficient knowledge (a step and the whole are wrong),
inadequate generalization (only the whole is wrong), complete mastery (all right) and rote memorization (the whole is
right, a step is wrong; in the loose reading, every step) apart.
"""

import re
from collections.abc import Sequence

from vold_trainer.adapters.base import LETTER, Adapter, Figures, Outcome, Question, Row, Wording, choice, listed
from vold_trainer.data import Example

_KEY = re.compile(r"([23])steps_([123]|multi)")
_OPTION = re.compile(r"(?:^|;)\s*([A-H])\s*\.")
_NAMES = {2: "two-step", 3: "three-step"}
FIGURES = (
    *("score_strict", "score_loose", "insufficient_knowledge", "inadequate_generalization"),
    *("complete_mastery_strict", "complete_mastery_loose", "rote_memorization_strict", "rote_memorization_loose"),
)


def _example(row: Row, wording: Wording) -> Example:
    problem, key, option = row.text("ID"), row.text("key"), row.text("option")
    matched = _KEY.fullmatch(key)
    if matched is None:
        raise row.fault("key", "give 2steps_1, 2steps_2, 2steps_multi, 3steps_1, ... or 3steps_multi")
    options = split_options(option)
    asked = row.text("question")
    own = f"{asked}\n{option}\nAnswer with the letter of the right option."
    return (
        Question()
        .picture(row.image("image_path", "image"))
        .text(own if wording == "own" else f"{asked}\n{listed(options) if options else option}\n{LETTER}")
        .example(
            f"{problem}/{key}",
            row.answer("answer", "give the letter of the right option"),
            "choice",
            choice(options) or {"letters": "ABCDEFGH"},
            category=_NAMES[int(matched[1])] if matched[2] == "multi" else "one-step",
            facets={"knowledge concept": row.maybe("knowledge concept")},
            problem=problem,
            steps=int(matched[1]),
            step=matched[2],
        )
    )


def split_options(text: str) -> dict[str, str]:
    """Options of "A. 4; B. 3; E. No correct answer"; none where their letters do not stand in order."""
    pieces = _OPTION.split(text)
    found = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    ordered = len(found) == len(pieces) // 2 and list(found) == sorted(found) and next(iter(found), "") == "A"
    return found if ordered and len(found) > 1 else {}


def _aggregate(outcomes: Sequence[Outcome]) -> Figures:
    """Over the problems that are complete and judged; a score is the mean of 1 for mastery, 1/2 for inadequate
    generalization and 0 for the rest. Rote memorization is a share of the problems whose whole is right.
    """
    problems: dict[tuple[str, int], dict[str, bool | None]] = {}
    for outcome in outcomes:
        meta = outcome.example.meta
        problems.setdefault((meta["problem"], meta["steps"]), {})[meta["step"]] = outcome.correct
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for (_, steps), found in problems.items():
        if len(found) != steps + 1 or None in found.values():
            continue
        whole = bool(found["multi"])
        parts = [bool(correct) for step, correct in found.items() if step != "multi"]
        generalizes = 0.5 * (not whole and all(parts))
        for how, mastered in (("strict", whole and all(parts)), ("loose", whole and any(parts))):
            figures[f"score_{how}"].append(mastered + generalizes)
            figures[f"complete_mastery_{how}"].append(float(mastered))
            if whole:
                figures[f"rote_memorization_{how}"].append(float(not mastered))
        figures["insufficient_knowledge"].append(float(not whole and not all(parts)))
        figures["inadequate_generalization"].append(float(not whole and all(parts)))
    return figures


ADAPTER = Adapter(
    "wemath",
    "We-Math/We-Math",
    ("ID", "key", "question", "option", "image_path", "answer", "knowledge concept"),
    _example,
    _aggregate,
    also=("image",),
)
