"""MATH-Vision (Wang et al. 2024, arXiv:2402.14804): competition problems with an image; options or a short answer."""

from vold_trainer.adapters.base import (
    ASK_ANSWER,
    ASK_LETTER,
    Adapter,
    BenchmarkRow,
    Question,
    Wording,
    choice_parameters,
    format_options,
)
from vold_trainer.data import Example

_OWN_INSTRUCTION = (
    r'Please solve the problem step by step and put your answer in one "\boxed{}". '
    r'If it is a multiple choice question, only one letter is allowed in the "\boxed{}".'
)


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    options = row.options("options")
    option_lines = format_options(options) if any(text != letter for letter, text in options.items()) else ""
    question = [row.text("question"), option_lines]
    lines = [_OWN_INSTRUCTION, *question] if wording == "own" else [*question, ASK_LETTER if options else ASK_ANSWER]
    facets = {name: row.optional_text(name) for name in ("subject", "level") if row.optional_text(name)}
    return (
        Question()
        .add_image(row.image("decoded_image", "image"))
        .add_text("\n".join(filter(None, lines)))
        .make_example(
            row.text("id"),
            row.answer("answer", "give the letter of the right option, or the answer"),
            "choice" if options else "math",
            choice_parameters(options) if options else {},
            category=row.optional_text("subject"),
            facets=facets,
        )
    )


ADAPTER = Adapter(
    "mathvision",
    "MathLLMs/MathVision",
    ("id", "question", "options", "decoded_image", "answer", "level", "subject"),
    _make_example,
    alternative_columns=("image",),
)
