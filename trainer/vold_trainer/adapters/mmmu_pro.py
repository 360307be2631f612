"""MMMU-Pro (Yue et al. 2024, arXiv:2409.02813): up to ten options and seven pictures, or all of it in one picture."""

import re

from vold_trainer.adapters.base import LETTER, Adapter, Question, Row, Wording, choice, lettered, listed
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


def _example(row: Row, wording: Wording) -> Example:
    options = lettered(row.texts("options"))
    if len(options) < 2:
        raise row.fault("options", "give a list of options, or that list written as text")
    subject = row.text("subject")
    question = _read(row, wording, options) if row.maybe("question") else _seen(row, wording)
    return question.example(
        row.text("id"),
        row.answer("answer", "give the letter of the right option"),
        "choice",
        choice(options),
        category=subject,
        facets={"discipline": DISCIPLINE.get(subject, ""), "difficulty": row.maybe("topic_difficulty")},
    )


def _seen(row: Row, wording: Wording) -> Question:
    """The vision configuration: question and options stand in the picture alone."""
    own = "Write out the multiple-choice question in the image and then solve it. " + _LAST_LINE
    words = own if wording == "own" else f"Solve the multiple-choice question in the picture.\n{LETTER}"
    return Question().picture(row.image("image")).text(words)


def _read(row: Row, wording: Wording, options: dict[str, str]) -> Question:
    """Each picture stands where the text mentions it first; later mentions are words."""
    own = "Answer the preceding multiple choice question. " + _LAST_LINE
    words = "\n".join([row.text("question"), listed(options), own if wording == "own" else LETTER])
    question, shown = Question(), set[str]()
    for index, piece in enumerate(_MARK.split(words)):
        if index % 2 == 0:
            question.text(piece)
        elif piece in shown:
            question.text(f"image {piece}")
        else:
            shown.add(piece)
            question.picture(row.image(f"image_{piece}"))
    return question


ADAPTER = Adapter(
    "mmmu_pro",
    "MMMU/MMMU_Pro",
    ("id", "question", "options", "image_1", "image_2", "image_3", "image_4", "image_5", "image_6", "image_7",
     "image", "answer", "subject", "topic_difficulty"),
    _example,
)  # fmt: skip
