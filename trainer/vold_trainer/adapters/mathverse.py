"""MathVerse (Zhang et al. 2024, arXiv:2403.14624): each problem in up to six versions that move its information from
the text into the image.
"""

from collections.abc import Sequence

from vold_trainer.adapters.base import (
    ASK_ANSWER,
    ASK_LETTER,
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

TEXT_ONLY = "Text Only"


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    version = row.text("problem_version")
    image = row.optional_image("image") if version == TEXT_ONLY else row.image("image")
    is_choice = row.text("question_type") == "multi-choice"
    if wording == "own":
        text = row.text("query_cot")
    else:
        # A "Vision Only" row has its question in the image alone.
        question = row.optional_text("question") or "Solve the problem in the picture."
        text = f"{question}\n{ASK_LETTER if is_choice else ASK_ANSWER}"
    # The question has the options unless it is empty; question_for_eval always has them.
    question_with_options = row.optional_text("question") or row.optional_text("question_for_eval")
    parameters = choice_parameters(find_options(question_with_options)) if is_choice else {}
    metadata = row.fields("metadata")
    return (
        Question()
        .add_image(image)
        .add_text(text)
        .make_example(
            row.text("sample_index"),
            row.answer("answer", "the test split hides its answers: use testmini"),
            "choice" if is_choice else "math",
            parameters,
            category=version,
            facets={name: metadata[name] for name in ("subject", "subfield", "source") if metadata.get(name)}
            | {"question_type": row.text("question_type")},
        )
    )


def _aggregate(outcomes: Sequence[Outcome]) -> Metrics:
    """The benchmark's overall accuracy, which excludes the version without an image."""
    counted = [o for o in outcomes if o.example.category != TEXT_ONLY and o.correct is not None]
    return {"with_picture": [float(bool(outcome.correct)) for outcome in counted]}


ADAPTER = Adapter(
    "mathverse",
    "AI4Math/MathVerse",
    ("sample_index", "problem_version", "question", "image", "answer", "question_type", "metadata", "query_cot",
     "question_for_eval"),
    _make_example,
    _aggregate,
)  # fmt: skip
