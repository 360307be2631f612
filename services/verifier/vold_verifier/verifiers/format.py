"""`format`: the completion has the required structure, whatever its answer is. The reference is not used.

The structure is: tags in order, each once and closed; lengths; and the writing system of the letters, which detects a
switch from English to Chinese, but not from English to French.
"""

import re
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.boxes import boxed_contents
from vold_verifier.reading.scripts import Script, script_share
from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier

_TAGS = re.compile(r"</?[A-Za-z][\w-]{0,40}>")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TAG = re.compile(r"^[A-Za-z][\w-]*$")


class FormatParameters(Parameters):
    tags: tuple[str, ...] = Field(
        default=("think", "answer"),
        description="each tag opens and closes once, in this order, with text other than white space inside",
    )
    opened_by_prompt: bool = Field(
        default=False, description="the prompt has already opened the first tag, so the completion only closes it"
    )
    allow_between: bool = Field(default=False, description="allow text outside the tags")
    require_box: bool = Field(
        default=False,
        description=r"require exactly one non-empty \boxed{} after the first tag (or anywhere without tags)",
    )

    min_chars: int = Field(default=0, ge=0, description="minimum number of characters in the whole completion")
    max_chars: int | None = Field(
        default=None, ge=1, description="maximum number of characters in the whole completion"
    )
    min_inside_chars: dict[str, int] = Field(
        default_factory=dict, description='minimum number of characters inside a tag, {"think": 50}'
    )
    max_inside_chars: dict[str, int] = Field(
        default_factory=dict, description='maximum number of characters inside a tag, {"answer": 200}'
    )
    scripts: tuple[Script, ...] = Field(
        default=(), description="the writing systems that letters must belong to; empty for any"
    )
    min_script_share: float = Field(
        default=0.95, gt=0, le=1, description="minimum share of letters that belong to `scripts`"
    )

    @field_validator("tags")
    @classmethod
    def _check_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if not _TAG.match(tag):
                raise ValueError(f"{tag!r} is not a tag's name; write it without brackets, for example think")
        if len(set(tags)) != len(tags):
            raise ValueError("the same tag is named twice")
        return tags

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        has_bounds = self.min_chars or self.max_chars or self.scripts
        if not self.tags and not self.require_box and not has_bounds:
            raise ValueError("nothing to check: name tags, a length or scripts, or set require_box")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is less than min_chars {self.min_chars}")
        for tag in {*self.min_inside_chars, *self.max_inside_chars} - set(self.tags):
            raise ValueError(f"there is a limit on the length inside {tag!r}, which is not one of the tags")
        return self


class FormatVerifier(Verifier[FormatParameters]):
    name: ClassVar[str] = "format"
    summary: ClassVar[str] = (
        "the completion's structure: think and answer tags in order and closed, lengths, writing system"
    )
    parameters: ClassVar[type[FormatParameters]] = FormatParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: FormatParameters, /) -> Verdict:
        violation, inside = _check_structure(item.completion, parameters)
        if violation:
            return Verdict.wrong(inside, violation, _rule_of_violation(item.completion, parameters))
        if violation := _check_bounds(item.completion, parameters):
            return Verdict.wrong(inside, violation)
        return Verdict.right(inside, "the structure is right")


def _rule_of_violation(completion: str, parameters: FormatParameters) -> str:
    """The anti-hacking rule that a completion with the wrong structure breaks, or ""."""
    for number, tag in enumerate(parameters.tags):
        already_open = number == 0 and parameters.opened_by_prompt
        if completion.count(f"<{tag}>") + already_open > completion.count(f"</{tag}>"):
            return hacking.UNCLOSED_TAG
    if not completion.strip():
        return hacking.EMPTY_ANSWER
    return hacking.UNCLOSED_TAG if parameters.require_box and boxed_contents(completion)[1] else ""


def _check_bounds(completion: str, parameters: FormatParameters) -> str | None:
    """The limit that the lengths or the letters of a completion break, or None. Its tags are in order."""
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
        if (share := script_share(text, parameters.scripts)) < parameters.min_script_share:
            expected = ", ".join(parameters.scripts)
            return f"{share:.1%} of the letters are {expected}, fewer than {parameters.min_script_share:.1%}"
    return None


def _check_structure(completion: str, parameters: FormatParameters) -> tuple[str | None, str | None]:
    """(what is wrong with the tags and boxes, or None; the text inside the last tag, or None)."""
    position, inside, outside_texts = 0, None, []
    first_tag_end = 0
    for number, tag in enumerate(parameters.tags):
        opening, closing = f"<{tag}>", f"</{tag}>"
        already_open = number == 0 and parameters.opened_by_prompt
        for tag_text, expected in ((opening, 0 if already_open else 1), (closing, 1)):
            count = completion.count(tag_text)
            if count != expected:
                return f"{tag_text} occurs {count} times, {expected} wanted", inside
        start = 0 if already_open else completion.find(opening, position)
        if start < 0:
            return f"{opening} stands before the tag that should precede it", inside
        content_start = start if already_open else start + len(opening)
        end = completion.find(closing, content_start)
        if end < 0:
            return f"{closing} stands before {opening}", inside
        content = completion[content_start:end]
        if not content.strip():
            return f"nothing inside {opening}", inside
        outside_texts.append(completion[position:start])
        position, inside = end + len(closing), content
        first_tag_end = first_tag_end or position
    outside_texts.append(completion[position:])
    if (
        parameters.tags
        and not parameters.allow_between
        and not parameters.require_box
        and "".join(outside_texts).strip()
    ):
        return "text outside the tags", inside
    if parameters.require_box:
        contents, unclosed = boxed_contents(completion[first_tag_end:])
        if unclosed or len(contents) != 1 or not contents[0].strip():
            return rf"{len(contents)} closed \boxed{{}}, exactly one that is not empty wanted", inside
        inside = contents[0]
    return None, inside.strip() if inside is not None else None
