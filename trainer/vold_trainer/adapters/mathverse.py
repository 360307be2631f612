"""MathVerse (Zhang et al. 2024, arXiv:2403.14624): each problem in up to six versions that move its information from
the text into the picture.
"""

from collections.abc import Sequence

from vold_trainer.adapters.base import (
    FREE,
    LETTER,
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

TEXT_ONLY = "Text Only"


def _example(row: Row, wording: Wording) -> Example:
    version = row.text("problem_version")
    picture = row.maybe_image("image") if version == TEXT_ONLY else row.image("image")
    chosen = row.text("question_type") == "multi-choice"
    if wording == "own":
        words = row.text("query_cot")
    else:
        # A "Vision Only" row has its question in the picture, and none here.
        asked = row.maybe("question") or "Solve the problem in the picture."
        words = f"{asked}\n{LETTER if chosen else FREE}"
    # The options are in the text of the versions that have one, and always in the one for judges.
    parameters = choice(options_in(row.maybe("question") or row.maybe("question_for_eval"))) if chosen else {}
    metadata = row.fields("metadata")
    return (
        Question()
        .picture(picture)
        .text(words)
        .example(
            row.text("sample_index"),
            row.answer("answer", "the test split hides its answers: use testmini"),
            "choice" if chosen else "math",
            parameters,
            category=version,
            facets={name: metadata[name] for name in ("subject", "subfield", "source") if metadata.get(name)}
            | {"question_type": row.text("question_type")},
        )
    )


def _aggregate(outcomes: Sequence[Outcome]) -> Figures:
    """The benchmark's overall figure leaves out the version that has no picture."""
    seen = [o for o in outcomes if o.example.category != TEXT_ONLY and o.correct is not None]
    return {"with_picture": [float(bool(outcome.correct)) for outcome in seen]}


ADAPTER = Adapter(
    "mathverse",
    "AI4Math/MathVerse",
    ("sample_index", "problem_version", "question", "image", "answer", "question_type", "metadata", "query_cot",
     "question_for_eval"),
    _example,
    _aggregate,
)  # fmt: skip
