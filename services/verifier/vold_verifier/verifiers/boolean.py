"""`boolean`: the answer is yes or no, in the words that the parameters list. Both in one answer are no answer."""

import re
from typing import ClassVar, Self

from pydantic import Field, model_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, find, reference_text
from vold_verifier.reading.text import plain, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

MAX_ANSWER_CHARS = 2000
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NEGATION = frozenset({"not", "isn't", "never", "neither", "nor", "hardly"})
_JOINED = re.compile(r"\b(?:or|and|but|maybe|perhaps|possibly)\b|[/|]", re.IGNORECASE)


class BooleanParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description="where an answer may stand, first found wins, as for every verifier that reads an answer",
    )
    true_words: tuple[str, ...] = Field(default=("yes", "true", "correct"), min_length=1, description="words for yes")
    false_words: tuple[str, ...] = Field(default=("no", "false", "incorrect"), min_length=1, description="words for no")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        words = [word.casefold() for word in (*self.true_words, *self.false_words)]
        for word in words:
            if _WORD.fullmatch(word) is None:
                raise ValueError(f"{word!r} is not one word")
            if words.count(word) > 1:
                raise ValueError(f"{word!r} is listed twice")
        return self


class BooleanVerifier(Verifier[BooleanParameters]):
    name: ClassVar[str] = "boolean"
    summary: ClassVar[str] = "yes or no, true or false; both in one answer are no answer"
    parameters: ClassVar[type[BooleanParameters]] = BooleanParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: BooleanParameters, /) -> Verdict:
        gold, _, _ = _read(reference_text(item.reference), parameters)
        if gold is None:
            words = ", ".join((*parameters.true_words, *parameters.false_words))
            raise BadReferenceError(f"the reference {shorten(item.reference)} is none of {words}")
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        answer, why, rule = _read(found.answer, parameters)
        if answer is None:
            return Verdict.wrong(found.answer, why, rule)
        said = "yes" if answer else "no"
        return Verdict.right(said, "the same answer") if answer == gold else Verdict.wrong(said, "the other answer")


def _read(text: str, parameters: BooleanParameters) -> tuple[bool | None, str, str]:
    """(what `text` says or None, why it says nothing, the rule it breaks)."""
    text = plain(text[:MAX_ANSWER_CHARS])
    while (unwrapped := _WRAPPER.sub(r"\1", text)) != text:
        text = unwrapped
    words = [word.casefold().replace("’", "'") for word in _WORD.findall(text)]
    meaning = dict.fromkeys((word.casefold() for word in parameters.true_words), True)
    meaning |= dict.fromkeys((word.casefold() for word in parameters.false_words), False)
    said = [(position, meaning[word]) for position, word in enumerate(words) if word in meaning]
    if not said:
        rule = hacking.LOOK_ALIKE if hacking.look_alike(text) else ""
        return None, f"neither yes nor no: {shorten(text)}", rule
    first, value = said[0]
    if first > 0 or _NEGATION.intersection(words[: first + 1]):
        return None, f"does not begin with yes or no: {shorten(text)}", ""
    for position, other in said[1:]:
        # "No, that is not correct" explains itself; "yes or no", "yes, no" and "true/false" take both sides.
        if other != value and (position == first + 1 or _JOINED.search(text) is not None):
            return None, f"both yes and no: {shorten(text)}", hacking.SEVERAL_ANSWERS
    return value, "", ""
