"""`format`: the completion has the shape that was asked for, whatever the answer is. The reference is not used."""

import re
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from vold_verifier.extraction import boxes
from vold_verifier.verifiers.base import Item, Parameters, Verdict, Verifier

_TAG = re.compile(r"^[A-Za-z][\w-]*$")


class FormatParameters(Parameters):
    tags: tuple[str, ...] = Field(
        default=("think", "answer"),
        description="each tag opens and closes once, in this order, with something other than blanks inside",
    )
    opened_by_prompt: bool = Field(
        default=False, description="the prompt has already opened the first tag, so that only its closing is looked for"
    )
    allow_between: bool = Field(default=False, description="allow text outside the tags")
    require_box: bool = Field(
        default=False,
        description=r"require exactly one non-empty \boxed{} after the first tag (or anywhere without tags)",
    )

    @field_validator("tags")
    @classmethod
    def _names(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if not _TAG.match(tag):
                raise ValueError(f"{tag!r} is not a tag's name; write it without brackets, for example think")
        if len(set(tags)) != len(tags):
            raise ValueError("a tag is named twice")
        return tags

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.tags and not self.require_box:
            raise ValueError("nothing to check: name tags or set require_box")
        return self


class FormatVerifier(Verifier[FormatParameters]):
    name: ClassVar[str] = "format"
    summary: ClassVar[str] = "the completion's structure: think and answer tags in order, each once, none left open"
    parameters: ClassVar[type[FormatParameters]] = FormatParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: FormatParameters, /) -> Verdict:
        fault, inside = _structure(item.completion, parameters)
        if fault:
            return Verdict.wrong(inside, fault)
        return Verdict.right(inside, "the structure holds")


def _structure(completion: str, parameters: FormatParameters) -> tuple[str | None, str | None]:
    """(what is wrong or None, the inside of the last tag or None)."""
    position, inside, outside = 0, None, []
    after_first = 0
    for number, tag in enumerate(parameters.tags):
        opening, closing = f"<{tag}>", f"</{tag}>"
        given = number == 0 and parameters.opened_by_prompt
        for mark, wanted in ((opening, 0 if given else 1), (closing, 1)):
            count = completion.count(mark)
            if count != wanted:
                return f"{mark} occurs {count} times, {wanted} wanted", inside
        start = 0 if given else completion.find(opening, position)
        if start < 0:
            return f"{opening} stands before the tag that should precede it", inside
        content_at = start if given else start + len(opening)
        end = completion.find(closing, content_at)
        if end < 0:
            return f"{closing} stands before {opening}", inside
        content = completion[content_at:end]
        if not content.strip():
            return f"nothing inside {opening}", inside
        outside.append(completion[position:start])
        position, inside = end + len(closing), content
        after_first = after_first or position
    outside.append(completion[position:])
    if parameters.tags and not parameters.allow_between and not parameters.require_box and "".join(outside).strip():
        return "text outside the tags", inside
    if parameters.require_box:
        contents, unclosed = boxes(completion[after_first:])
        if unclosed or len(contents) != 1 or not contents[0].strip():
            return rf"{len(contents)} closed \boxed{{}} where exactly one with something inside is wanted", inside
        inside = contents[0]
    return None, inside.strip() if inside is not None else None
