"""MATH-Vision (Wang et al. 2024, arXiv:2402.14804): competition problems with a picture; options or a short answer."""

from vold_trainer.adapters.base import FREE, LETTER, Adapter, Question, Row, Wording, choice, lettered, listed
from vold_trainer.data import Example

_OWN = (
    r'Please solve the problem step by step and put your answer in one "\boxed{}". '
    r'If it is a multiple choice question, only one letter is allowed in the "\boxed{}".'
)


def _example(row: Row, wording: Wording) -> Example:
    options = lettered(row.texts("options"))
    shown = listed(options) if any(text != letter for letter, text in options.items()) else ""
    asked = [row.text("question"), shown]
    words = [_OWN, *asked] if wording == "own" else [*asked, LETTER if options else FREE]
    facets = {name: row.maybe(name) for name in ("subject", "level") if row.maybe(name)}
    return (
        Question()
        .picture(row.image("decoded_image", "image"))
        .text("\n".join(filter(None, words)))
        .example(
            row.text("id"),
            row.answer("answer", "give the letter of the right option, or the answer"),
            "choice" if options else "math",
            choice(options) if options else {},
            category=row.maybe("subject"),
            facets=facets,
        )
    )


ADAPTER = Adapter(
    "mathvision",
    "MathLLMs/MathVision",
    ("id", "question", "options", "decoded_image", "answer", "level", "subject"),
    _example,
    also=("image",),
)
