"""MathVista (Lu et al. 2023, arXiv:2310.02255): pictures of many kinds, options or a number or a list of numbers.

Its scorer asks a model for the answer's words and rounds a number to the row's `precision`; here the verifier reads
the answer, and a number may be off by half of the last place asked for. An integer has to be exact.
"""

from vold_trainer.adapters.base import FREE, LETTER, UNMARKED, Adapter, Question, Row, Wording, choice, lettered, listed
from vold_trainer.data import Example

FACETS = ("task", "context", "grade", "language", "source", "category", "skills")


def _example(row: Row, wording: Wording) -> Example:
    answer = row.answer("answer", "the test split hides its answers: use testmini")
    options = lettered(row.texts("choices")) if row.maybe("question_type") == "multi_choice" else {}
    if options:
        reference = next((letter for letter, text in options.items() if text.strip() == answer), "")
        if not reference:
            raise row.fault("answer", f"give one of the choices {list(options.values())}")
        verifier, parameters = "choice", choice(options)
    else:
        reference, (verifier, parameters) = answer, _free(row)
        if wording == "own" and verifier == "numeric":
            parameters["accept"] = UNMARKED
    metadata = row.fields("metadata")
    facets = {name: metadata[name] for name in FACETS if metadata.get(name)}
    question = Question().picture(row.image("decoded_image", "image")).text(_words(row, wording, options))
    return question.example(
        row.text("pid"), reference, verifier, parameters, category=str(metadata.get("task", "")), facets=facets
    )


def _free(row: Row) -> tuple[str, dict[str, object]]:
    kind = row.text("answer_type")
    if kind == "integer":
        return "numeric", {}
    if kind == "float":
        places = row.maybe("precision") or "1"
        return "numeric", {"absolute_tolerance": 0.5 * 10.0 ** -int(float(places))}
    if kind == "list":
        return "list", {"items": "number", "ordered": True}
    return "exact", {"ignore_case": True}


def _words(row: Row, wording: Wording, options: dict[str, str]) -> str:
    if wording == "own":
        return row.text("query")
    unit = row.maybe("unit")
    lines = [row.text("question") + (f" (Unit: {unit})" if unit else "")]
    if options:
        return "\n".join([*lines, listed(options), LETTER])
    if row.maybe("answer_type") == "float":
        places = int(float(row.maybe("precision") or "1"))
        lines.append(f"Give {places} decimal place{'s' * (places != 1)}.")
    elif row.maybe("answer_type") == "list":
        lines.append("Give a list with commas.")
    return "\n".join([*lines, FREE])


ADAPTER = Adapter(
    "mathvista",
    "AI4Math/MathVista",
    ("pid", "question", "decoded_image", "choices", "unit", "precision", "answer", "question_type", "answer_type",
     "metadata", "query"),
    _example,
    also=("image",),
)  # fmt: skip
