"""`format`: the completion has the shape that was asked for, whatever the answer is. The reference is not used.

Shape is: tags in order, each once and closed; lengths; and the writing system of its letters, which tells a switch from
English to Chinese, but not one from English to French.
"""

import re
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import boxes
from vold_verifier.reading.scripts import Script, share
from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier

_TAGS = re.compile(r"</?[A-Za-z][\w-]{0,40}>")
_COMMAND = re.compile(r"\\[A-Za-z]+")
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

    min_chars: int = Field(default=0, ge=0, description="fewest characters of the whole completion")
    max_chars: int | None = Field(default=None, ge=1, description="most characters of the whole completion")
    min_inside_chars: dict[str, int] = Field(
        default_factory=dict, description='fewest characters inside a tag, {"think": 50}'
    )
    max_inside_chars: dict[str, int] = Field(
        default_factory=dict, description='most characters inside a tag, {"answer": 200}'
    )
    scripts: tuple[Script, ...] = Field(
        default=(), description="the writing systems that the letters have to belong to; empty for any"
    )
    min_script_share: float = Field(
        default=0.95, gt=0, le=1, description="the smallest share of letters that belong to `scripts`"
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
        bounds = self.min_chars or self.max_chars or self.scripts
        if not self.tags and not self.require_box and not bounds:
            raise ValueError("nothing to check: name tags, a length or scripts, or set require_box")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is less than min_chars {self.min_chars}")
        for tag in {*self.min_inside_chars, *self.max_inside_chars} - set(self.tags):
            raise ValueError(f"a length is asked for inside {tag!r}, which is not among the tags")
        return self


class FormatVerifier(Verifier[FormatParameters]):
    name: ClassVar[str] = "format"
    summary: ClassVar[str] = (
        "the completion's structure: think and answer tags in order and closed, lengths, writing system"
    )
    parameters: ClassVar[type[FormatParameters]] = FormatParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: FormatParameters, /) -> Verdict:
        fault, inside = _structure(item.completion, parameters)
        if fault:
            return Verdict.wrong(inside, fault, _rule(item.completion, parameters))
        if fault := _bounds(item.completion, parameters):
            return Verdict.wrong(inside, fault)
        return Verdict.right(inside, "the structure holds")


def _rule(completion: str, parameters: FormatParameters) -> str:
    """The rule of unclosed tags where a tag is opened more often than it is closed, or a box stays open; else ""."""
    for number, tag in enumerate(parameters.tags):
        given = number == 0 and parameters.opened_by_prompt
        if completion.count(f"<{tag}>") + given > completion.count(f"</{tag}>"):
            return hacking.UNCLOSED_TAG
    if not completion.strip():
        return hacking.EMPTY_ANSWER
    return hacking.UNCLOSED_TAG if parameters.require_box and boxes(completion)[1] else ""


def _bounds(completion: str, parameters: FormatParameters) -> str | None:
    """What is wrong with the lengths and the letters of a completion whose structure holds, or None."""
    if len(completion) < parameters.min_chars:
        return f"{len(completion):,} characters, fewer than {parameters.min_chars:,}"
    if parameters.max_chars is not None and len(completion) > parameters.max_chars:
        return f"{len(completion):,} characters, more than {parameters.max_chars:,}"
    for tag in parameters.tags:
        start = completion.find(f"<{tag}>")
        inside = completion[start + len(tag) + 2 if start >= 0 else 0 : completion.find(f"</{tag}>")].strip()
        fewest, most = parameters.min_inside_chars.get(tag, 0), parameters.max_inside_chars.get(tag)
        if len(inside) < fewest:
            return f"{len(inside):,} characters inside <{tag}>, fewer than {fewest:,}"
        if most is not None and len(inside) > most:
            return f"{len(inside):,} characters inside <{tag}>, more than {most:,}"
    if parameters.scripts:
        text = _COMMAND.sub("", _TAGS.sub("", completion))
        if (found := share(text, parameters.scripts)) < parameters.min_script_share:
            wanted = ", ".join(parameters.scripts)
            return f"{found:.1%} of the letters are {wanted}, fewer than {parameters.min_script_share:.1%}"
    return None


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
