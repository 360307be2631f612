"""LogicVista (Xiao et al. 2024, arXiv:2407.04973): puzzles in an image; answers are letters or numbers."""

import re

from vold_trainer.adapters.base import Adapter, BenchmarkRow, Question, Wording, choice_parameters, find_options
from vold_trainer.data import Example

_INSTRUCTION = r"Put the letter of the right option in \boxed{}, or all of them with commas where several are right."


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    question = row.text("question")
    answer = row.answer("answer", "give the letters of the right options")
    letters = re.findall(r"[A-Z]", answer) if re.fullmatch(r"[A-Z](\s*,\s*[A-Z])*", answer) else []
    verifier = {0: "numeric", 1: "choice"}.get(len(letters), "multi-choice")
    skills = row.names("skill")
    facets = {
        "capability": row.names("broad_capability") or row.names("capability"),
        "specific_capability": row.names("specific_capability"),
    }
    return (
        Question()
        .add_image(row.image("image", "imagename"))
        .add_text(question if wording == "own" else f"{question}\n{_INSTRUCTION}")
        .make_example(
            row.optional_text("id") or row.where,
            ", ".join(letters) or answer,
            verifier,
            choice_parameters(find_options(question)) if letters else {},
            category=skills[0] if skills else "",
            facets={name: values for name, values in facets.items() if values},
        )
    )


ADAPTER = Adapter(
    "logicvista",
    "lscpku/LogicVista",
    ("id", "question", "image", "answer", "skill", "broad_capability", "specific_capability"),
    _make_example,
    alternative_columns=("imagename", "capability"),
)
