"""`exact`: the answer is the text of the reference, after the normalisation that the parameters choose."""

import re
import string
from typing import ClassVar

from pydantic import Field

from vold_verifier.reading.extraction import Extraction, Place, find
from vold_verifier.reading.text import normalise, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "final_part"),
        min_length=1,
        description=(
            "where an answer may stand; the first place that holds any text wins; final_part is the text after the "
            "thinking"
        ),
    )
    ignore_case: bool = Field(default=False, description="treat upper and lower case as equal")
    ignore_space: bool = Field(default=True, description="strip, and treat any run of white space as one space")
    ignore_punctuation: bool = Field(default=False, description="drop ASCII punctuation")
    ignore_articles: bool = Field(default=False, description="drop the words a, an and the (implies ignore_case)")
    unicode: bool = Field(default=True, description="compare NFKC forms without invisible characters")


class ExactVerifier(Verifier[ExactParameters]):
    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "the same text, after the normalisation that the parameters choose"
    parameters: ClassVar[type[ExactParameters]] = ExactParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: ExactParameters, /) -> Verdict:
        reference = normalise_answer(item.reference, parameters)
        if not reference:
            raise BadReferenceError(f"the reference is empty once normalised: {shorten(item.reference)}")
        extracted = find(item.completion, parameters, item.prompt, allow_hidden=not parameters.unicode, verbatim=True)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if normalise_answer(extracted.answer, parameters) == reference:
            return Verdict.right(extracted.answer, "the same text")
        return Verdict.wrong(extracted.answer, "different text")


def normalise_answer(text: str, parameters: ExactParameters) -> str:
    if parameters.unicode:
        text = normalise(text)
    if parameters.ignore_case or parameters.ignore_articles:
        text = text.casefold()
    if parameters.ignore_punctuation:
        text = text.translate(_PUNCTUATION)
    if parameters.ignore_articles:
        text = _ARTICLE.sub(" ", text)
    return " ".join(text.split()) if parameters.ignore_space else text
