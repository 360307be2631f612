"""`regex`: the answer matches a pattern, or the text that a pattern matches in the answer is the reference."""

import re
from functools import lru_cache
from typing import ClassVar, Self

from pydantic import Field, model_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, find
from vold_verifier.reading.text import normalise, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

MAX_ANSWER_CHARS = 20_000


class RegexParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "final_part"),
        min_length=1,
        description=(
            "where an answer may stand; the first place that holds any text wins; final_part is the text after the "
            "thinking"
        ),
    )
    pattern: str = Field(
        default="",
        max_length=2000,
        description=(
            "searched in the answer; its first group (without groups, the whole match) must be the reference. By "
            "default the reference itself is the pattern, and must match the whole answer"
        ),
    )
    ignore_case: bool = Field(default=False, description="treat upper and lower case as equal")
    dot_matches_newline: bool = Field(default=False, description="let . match a line break too")

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"pattern {shorten(self.pattern)} is no regular expression: {error}") from None
        return self


class RegexVerifier(Verifier[RegexParameters]):
    name: ClassVar[str] = "regex"
    summary: ClassVar[str] = "the answer matches a pattern, or a pattern finds the reference in the answer"
    parameters: ClassVar[type[RegexParameters]] = RegexParameters
    cost: ClassVar[int] = 8
    parameters_in_worker: ClassVar[bool] = True

    def check(self, item: Item, parameters: RegexParameters, /) -> Verdict:
        flags = re.IGNORECASE * parameters.ignore_case | re.DOTALL * parameters.dot_matches_newline
        reference = item.reference.strip()
        if not reference:
            raise BadReferenceError("the reference is empty: give the text to find, or a pattern")
        try:
            compiled = _compile(parameters.pattern or reference, int(flags))
        except (re.error, RecursionError, OverflowError) as error:
            raise BadReferenceError(
                f"the reference {shorten(reference)} is no regular expression: {error}; correct it, or give a pattern"
            ) from None
        extracted = find(item.completion, parameters, item.prompt, verbatim=True)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(extracted.answer) > MAX_ANSWER_CHARS:
            reason = f"the answer has {len(extracted.answer):,} characters, over {MAX_ANSWER_CHARS:,}"
            return Verdict.wrong(extracted.answer, reason, hacking.UNSAFE)
        answer = normalise(extracted.answer)
        if not parameters.pattern:
            if compiled.fullmatch(answer):
                return Verdict.right(answer, "the answer matches")
            return Verdict.wrong(answer, "the answer does not match")
        match = compiled.search(answer)
        if match is None:
            return Verdict.wrong(answer, "the pattern is not found in the answer")
        text = (match.group(1) if compiled.groups else match.group()) or ""
        same = text.casefold() == reference.casefold() if parameters.ignore_case else text == reference
        return Verdict.right(text, "the same text") if same else Verdict.wrong(text, "different text")


@lru_cache(maxsize=256)
def _compile(pattern: str, flags: int) -> re.Pattern[str]:
    return re.compile(pattern, flags)
