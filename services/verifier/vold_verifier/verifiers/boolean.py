"""`boolean`: the answer is yes or no, in the words that the parameters list. An answer with both is wrong."""

import re
from collections import Counter
from typing import ClassVar, Self

from pydantic import Field, model_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, find, reference_text
from vold_verifier.reading.text import normalise, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

MAX_ANSWER_CHARS = 2000
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NEGATION = frozenset({"not", "isn't", "never", "neither", "nor", "hardly"})
_JOINED = re.compile(r"\b(?:or|and|but|maybe|perhaps|possibly|wait|actually|rather|sorry|hmm+)\b|[/|]", re.IGNORECASE)


class BooleanParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description="where an answer may stand; the first place that holds any text wins",
    )
    true_words: tuple[str, ...] = Field(default=("yes", "true", "correct"), min_length=1, description="words for yes")
    false_words: tuple[str, ...] = Field(default=("no", "false", "incorrect"), min_length=1, description="words for no")

    @model_validator(mode="after")
    def _words_are_distinct(self) -> Self:
        words = [word.casefold() for word in (*self.true_words, *self.false_words)]
        counts = Counter(words)
        for word in words:
            if _WORD.fullmatch(word) is None:
                raise ValueError(f"{word!r} is not one word")
            if counts[word] > 1:
                raise ValueError(f"{word!r} is listed twice")
        return self


class BooleanVerifier(Verifier[BooleanParameters]):
    name: ClassVar[str] = "boolean"
    summary: ClassVar[str] = "yes or no, true or false; an answer with both is wrong"
    parameters: ClassVar[type[BooleanParameters]] = BooleanParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: BooleanParameters, /) -> Verdict:
        reference, _, _ = _parse_boolean(reference_text(item.reference), parameters)
        if reference is None:
            words = ", ".join((*parameters.true_words, *parameters.false_words))
            raise BadReferenceError(f"the reference {shorten(item.reference)} is none of {words}")
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        answer, reason, rule = _parse_boolean(extracted.answer, parameters)
        if answer is None:
            return Verdict.wrong(extracted.answer, reason, rule)
        yes_or_no = "yes" if answer else "no"
        if answer == reference:
            return Verdict.right(yes_or_no, "the same answer")
        return Verdict.wrong(yes_or_no, "the other answer")


def _parse_boolean(text: str, parameters: BooleanParameters) -> tuple[bool | None, str, str]:
    """(the truth value or None, the reason for None, the anti-hacking rule that `text` breaks or "")."""
    text = normalise(text[:MAX_ANSWER_CHARS])
    while (without_markup := _WRAPPER.sub(r"\1", text)) != text:
        text = without_markup
    words = [word.casefold().replace("’", "'") for word in _WORD.findall(text)]
    value_of_word = dict.fromkeys((word.casefold() for word in parameters.true_words), True)
    value_of_word |= dict.fromkeys((word.casefold() for word in parameters.false_words), False)
    matches = [(position, value_of_word[word]) for position, word in enumerate(words) if word in value_of_word]
    if not matches:
        rule = hacking.LOOK_ALIKE if hacking.has_look_alikes(text) else ""
        return None, f"neither yes nor no: {shorten(text)}", rule
    first, value = matches[0]
    if first > 0 or _NEGATION.intersection(words[: first + 1]):
        return None, f"does not begin with yes or no: {shorten(text)}", ""
    for position, other_value in matches[1:]:
        # "No, that is not correct" is one answer; "yes or no", "yes, no" and "true/false" are both answers.
        if other_value != value and (position == first + 1 or _JOINED.search(text) is not None):
            return None, f"both yes and no: {shorten(text)}", hacking.SEVERAL_ANSWERS
    return value, "", ""
