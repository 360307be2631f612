"""`exact`: the answer is the reference, character by character, after a normalisation that is asked for by name."""

import re
import string
from typing import ClassVar

from pydantic import Field

from vold_verifier.reading.extraction import Extraction, Place, find
from vold_verifier.reading.text import plain, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "final_part"),
        min_length=1,
        description="where an answer may stand, first found wins; final_part is the whole text after the thinking",
    )
    ignore_case: bool = Field(default=False, description="treat upper and lower case as equal")
    ignore_space: bool = Field(default=True, description="strip, and count any run of white space as one blank")
    ignore_punctuation: bool = Field(default=False, description="drop ASCII punctuation")
    ignore_articles: bool = Field(default=False, description="drop the words a, an and the (implies ignore_case)")
    unicode: bool = Field(default=True, description="compare NFKC forms without invisible characters")


class ExactVerifier(Verifier[ExactParameters]):
    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "the same text, after the normalisation that the parameters ask for"
    parameters: ClassVar[type[ExactParameters]] = ExactParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: ExactParameters, /) -> Verdict:
        reference = normal(item.reference, parameters)
        if not reference:
            raise BadReferenceError(f"the reference is empty once normalised: {shorten(item.reference)}")
        found = find(item.completion, parameters, item.prompt, hidden=not parameters.unicode)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        if normal(found.answer, parameters) == reference:
            return Verdict.right(found.answer, "the same text")
        return Verdict.wrong(found.answer, "different text")


def normal(text: str, parameters: ExactParameters) -> str:
    if parameters.unicode:
        text = plain(text)
    if parameters.ignore_case or parameters.ignore_articles:
        text = text.casefold()
    if parameters.ignore_punctuation:
        text = text.translate(_PUNCTUATION)
    if parameters.ignore_articles:
        text = _ARTICLE.sub(" ", text)
    return " ".join(text.split()) if parameters.ignore_space else text
