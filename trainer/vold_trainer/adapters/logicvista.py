"""LogicVista (Xiao et al. 2024, arXiv:2407.04973): puzzles in a picture; one letter, several letters, or a number."""

import re

from vold_trainer.adapters.base import Adapter, Question, Row, Wording, choice, options_in
from vold_trainer.data import Example

_FORM = r"Put the letter of the right option in \boxed{}, or all of them with commas where several are right."


def _example(row: Row, wording: Wording) -> Example:
    asked = row.text("question")
    answer = row.answer("answer", "give the letters of the right options")
    letters = re.findall(r"[A-Z]", answer) if re.fullmatch(r"[A-Z](\s*,\s*[A-Z])*", answer) else []
    verifier = {0: "numeric", 1: "choice"}.get(len(letters), "multi-choice")
    skills = row.words("skill")
    facets = {
        "capability": row.words("broad_capability") or row.words("capability"),
        "specific_capability": row.words("specific_capability"),
    }
    return (
        Question()
        .picture(row.image("image", "imagename"))
        .text(asked if wording == "own" else f"{asked}\n{_FORM}")
        .example(
            row.maybe("id") or row.where,
            ", ".join(letters) or answer,
            verifier,
            choice(options_in(asked)) if letters else {},
            category=skills[0] if skills else "",
            facets={name: values for name, values in facets.items() if values},
        )
    )


ADAPTER = Adapter(
    "logicvista",
    "lscpku/LogicVista",
    ("id", "question", "image", "answer", "skill", "broad_capability", "specific_capability"),
    _example,
    also=("imagename", "capability"),
)
