"""`multi-choice`: the answer is a set of options, all of them and no other.

With `partial` a subset of the right options earns its share, and any wrong option earns nothing: naming every option
never pays.
"""

import re
from typing import ClassVar

from pydantic import Field

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Place, find, reference_text
from vold_verifier.reading.text import plain, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.choice import ChoiceParameters, named, unwrapped

_LETTERS = re.compile(r"^[\s,;/&+.()\[\]{}$*_'\"]*(?:(?:[A-Za-z](?![A-Za-z])|\band\b)[\s,;/&+.()\[\]{}$*_'\"]*)+$")
_RUN = re.compile(r"^[\s($*\[{]*(?P<run>[A-Z]{2,26})[\s)$*\]}.]*$")
_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_OR = re.compile(r"\bor\b|\beither\b|\bmaybe\b", re.IGNORECASE)
_PARTS = re.compile(r"\s*(?:[,;\n]|\band\b)\s*")
_NONE = frozenset({"none", "none of the above", "no option", "{}", r"\emptyset"})


class MultiChoiceParameters(ChoiceParameters):
    accept: tuple[Place, ...] = Field(  # type: ignore[assignment]
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description="where an answer may stand, first found wins, as for every verifier that reads an answer",
    )
    partial: bool = Field(
        default=False, description="reward the share of the right options that is named, where no wrong one is"
    )


class MultiChoiceVerifier(Verifier[MultiChoiceParameters]):
    name: ClassVar[str] = "multi-choice"
    summary: ClassVar[str] = "a set of options, by letters or texts: all the right ones and no other"
    parameters: ClassVar[type[MultiChoiceParameters]] = MultiChoiceParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: MultiChoiceParameters, /) -> Verdict:
        gold = several(reference_text(item.reference), parameters)
        if gold is None:
            raise BadReferenceError(
                f"the reference {shorten(item.reference)} names no set of options: write letters with commas between"
            )
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        answer = several(found.answer, parameters)
        if answer is None:
            rule = hacking.SEVERAL_ANSWERS if _OR.search(found.answer) else ""
            rule = hacking.LOOK_ALIKE if hacking.look_alike(found.answer) else rule
            return Verdict.wrong(found.answer, f"no set of options: {shorten(found.answer)}", rule)
        letters = ", ".join(sorted(answer))
        if answer == gold:
            return Verdict.right(letters, "the right options")
        wrong = answer - gold
        if wrong:
            everything = len(answer) > 1 and answer == set(parameters.offered)
            rule = hacking.SEVERAL_ANSWERS if everything else ""
            return Verdict.wrong(letters, f"wrong options: {', '.join(sorted(wrong))}", rule)
        reward = len(answer) / len(gold) if parameters.partial else 0.0
        return Verdict(reward, False, letters, f"{len(answer)} of {len(gold)} options named")


def several(text: str, parameters: MultiChoiceParameters) -> frozenset[str] | None:
    """The set of letters that `text` names, None where it names none or leaves the choice open ("A or C")."""
    text = unwrapped(plain(text)).strip()
    if " ".join(text.casefold().split()).strip(". ") in _NONE:
        return frozenset()
    if _OR.search(text):
        return None
    if match := _RUN.match(text):
        letters = match["run"]
        return frozenset(letters) if set(letters) <= set(parameters.offered) else None
    if _LETTERS.match(text):
        letters = "".join(_LETTER.findall(text)).upper()
        return frozenset(letters) if letters and set(letters) <= set(parameters.offered) else None
    read = [named(part, parameters) for part in _PARTS.split(text) if part.strip(" .")]
    if read and all(read):
        return frozenset(letter for letter in read if letter)
    one = named(text, parameters)
    return frozenset({one}) if one is not None else None
