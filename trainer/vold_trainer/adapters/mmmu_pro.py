"""MMMU-Pro (Yue et al. 2024, arXiv:2409.02813): up to ten options and seven images, or all in one image."""

import re

from vold_trainer.adapters.base import (
    ASK_LETTER,
    Adapter,
    BenchmarkRow,
    Question,
    Wording,
    choice_parameters,
    format_options,
)
from vold_trainer.data import Example

_MARK = re.compile(r"<image (\d)>")
_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
    "is one of options. Think step by step before answering."
)
_DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine"),
        *("Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
DISCIPLINE = {subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects}


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    options = row.options("options")
    if len(options) < 2:
        raise row.error("options", "give a list of options, or that list written as text")
    subject = row.text("subject")
    question = _standard(row, wording, options) if row.optional_text("question") else _vision(row, wording)
    return question.make_example(
        row.text("id"),
        row.answer("answer", "give the letter of the right option"),
        "choice",
        choice_parameters(options),
        category=subject,
        facets={"discipline": DISCIPLINE.get(subject, ""), "difficulty": row.optional_text("topic_difficulty")},
    )


def _vision(row: BenchmarkRow, wording: Wording) -> Question:
    """The vision configuration: the question and its options are in the image alone."""
    own_text = "Write out the multiple-choice question in the image and then solve it. " + _LAST_LINE
    text = own_text if wording == "own" else f"Solve the multiple-choice question in the picture.\n{ASK_LETTER}"
    return Question().add_image(row.image("image")).add_text(text)


def _standard(row: BenchmarkRow, wording: Wording, options: dict[str, str]) -> Question:
    """The standard configuration. An image is placed at its first mention in the text; later mentions stay text."""
    own_text = "Answer the preceding multiple choice question. " + _LAST_LINE
    text = "\n".join([row.text("question"), format_options(options), own_text if wording == "own" else ASK_LETTER])
    question, placed = Question(), set[str]()
    for index, piece in enumerate(_MARK.split(text)):
        if index % 2 == 0:
            question.add_text(piece)
        elif piece in placed:
            question.add_text(f"image {piece}")
        else:
            placed.add(piece)
            question.add_image(row.image(f"image_{piece}"))
    return question


ADAPTER = Adapter(
    "mmmu_pro",
    "MMMU/MMMU_Pro",
    ("id", "question", "options", "image_1", "image_2", "image_3", "image_4", "image_5", "image_6", "image_7",
     "image", "answer", "subject", "topic_difficulty"),
    _make_example,
)  # fmt: skip
