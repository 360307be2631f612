"""MathVista (Lu et al. 2023, arXiv:2310.02255): images of many kinds; answers are options, numbers or lists.

Its own scorer extracts the answer with a model and rounds a number to the row's `precision`. Here, a verifier extracts
the answer, and accepts a number within half a unit of the last decimal place. An integer must be exact.
"""

from vold_trainer.adapters.base import (
    ASK_ANSWER,
    ASK_LETTER,
    UNBOXED_FORMS,
    Adapter,
    BenchmarkRow,
    Question,
    Wording,
    choice_parameters,
    format_options,
)
from vold_trainer.data import Example

MAX_PLACES = 15
"""Decimal places that a number of 64 bits has."""

FACETS = ("task", "context", "grade", "language", "source", "category", "skills")


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    answer = row.answer("answer", "the test split hides its answers: use testmini")
    options = row.options("choices") if row.optional_text("question_type") == "multi_choice" else {}
    if options:
        reference = next((letter for letter, text in options.items() if text.strip() == answer), "")
        if not reference:
            raise row.error("answer", f"give one of the choices {list(options.values())}")
        verifier, parameters = "choice", choice_parameters(options)
    else:
        reference, (verifier, parameters) = answer, _free_form_verifier(row)
        if wording == "own" and verifier == "numeric":
            parameters["accept"] = UNBOXED_FORMS
    metadata = row.fields("metadata")
    facets = {name: metadata[name] for name in FACETS if metadata.get(name)}
    question = Question().add_image(row.image("decoded_image", "image")).add_text(_prompt_text(row, wording, options))
    return question.make_example(
        row.text("pid"), reference, verifier, parameters, category=str(metadata.get("task", "")), facets=facets
    )


def _free_form_verifier(row: BenchmarkRow) -> tuple[str, dict[str, object]]:
    """(verifier, its parameters) for a question without options."""
    answer_type = row.text("answer_type")
    if answer_type == "integer":
        return "numeric", {}
    if answer_type == "float":
        return "numeric", {"absolute_tolerance": 0.5 * 10.0 ** -_decimal_places(row)}
    if answer_type == "list":
        return "list", {"items": "number", "ordered": True}
    return "exact", {"ignore_case": True}


def _decimal_places(row: BenchmarkRow) -> int:
    """The row's `precision`; 1 if it has none."""
    try:
        places = float(row.optional_text("precision") or "1")
    except ValueError:
        places = -1.0
    if not 0 <= places <= MAX_PLACES:  # also what is no number
        raise row.error("precision", f"give the decimal places of the answer, 0 to {MAX_PLACES}")
    return int(places)


def _prompt_text(row: BenchmarkRow, wording: Wording, options: dict[str, str]) -> str:
    if wording == "own":
        return row.text("query")
    unit = row.optional_text("unit")
    lines = [row.text("question") + (f" (Unit: {unit})" if unit else "")]
    if options:
        return "\n".join([*lines, format_options(options), ASK_LETTER])
    if row.optional_text("answer_type") == "float":
        places = _decimal_places(row)
        lines.append(f"Give {places} decimal place{'s' * (places != 1)}.")
    elif row.optional_text("answer_type") == "list":
        lines.append("Give a list with commas.")
    return "\n".join([*lines, ASK_ANSWER])


ADAPTER = Adapter(
    "mathvista",
    "AI4Math/MathVista",
    ("pid", "question", "decoded_image", "choices", "unit", "precision", "answer", "question_type", "answer_type",
     "metadata", "query"),
    _make_example,
    alternative_columns=("image",),
)  # fmt: skip
