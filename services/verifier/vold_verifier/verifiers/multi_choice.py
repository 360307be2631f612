"""`multi-choice`: the answer is a set of options, exactly those of the reference.

With `partial`, the reward of a subset of the right options is the share of them that it names. With any wrong option
the reward is 0, so naming every option earns nothing.
"""

import re
from typing import ClassVar

from pydantic import Field

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import ExtractedAnswer, Place, final_part, find, reference_text
from vold_verifier.reading.text import normalise, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.options import ChoiceParameters, match_option, strip_latex_text

MAX_STATED_CHARS = 200
_LETTERS = re.compile(r"^[\s,;/&+.()\[\]{}$*_'\"]*(?:(?:[A-Za-z](?![A-Za-z])|\band\b)[\s,;/&+.()\[\]{}$*_'\"]*)+$")
_RUN = re.compile(r"^[\s($*\[{]*(?P<run>[A-Z]{2,26})[\s)$*\]}.]*$")
_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_OR = re.compile(r"\bor\b|\beither\b|\bmaybe\b|或", re.IGNORECASE)
_ITEM = r"[*_(\[]*(?-i:[A-Z])[*_)\]]*"
_LIST = rf"(?P<list>{_ITEM}(?:(?:\s*(?:,|;|、|&|和|与|,?\s+and\b)\s*|(?=(?-i:[A-Z]))){_ITEM})*)"
_HAN_LIST = _LIST.replace("<list>", "<han>")
_NOUN = r"(?:options?|answers?|choices?|statements?|ones?)"
_STATED = (
    re.compile(
        rf"^\W*(?:(?:so|thus|hence|therefore|only|the|both|all\s+of|{_NOUN})[\s,:]+){{0,4}}{_LIST}\s+"
        rf"(?:is|are)\s+(?:both\s+|all\s+)?(?:the\s+)?(?:only\s+)?(?:correct|right|true)(?:\s+{_NOUN})?\W*$"
        rf"|^\W*{_HAN_LIST}\s*(?:[两三四]?[项個个]|选项)?(?:都|均)?(?:是)?正确(?:的)?\W*$",
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?:^|[\s,.:])(?:(?:correct|right|true)\s+{_NOUN}|answers?)\s+(?:is|are)\s*:?\s*(?:both\s+)?{_LIST}\W*$"
        rf"|(?:^|[^不])(?:选择?|選擇?|答案[是为為]?)\s*[:：]?\s*{_HAN_LIST}\W*$",
        re.IGNORECASE,
    ),
)
_LABEL = re.compile(
    r"^(?:(?:options?|answers?|choices?)(?:\s*[:：]\s*|\s+(?=[A-Z](?![A-Za-z]))))?(?:both\s+)?", re.IGNORECASE
)
_PARTS = re.compile(r"\s*(?:[,;\n]|\band\b)\s*")
_NONE = frozenset({"none", "none of the above", "no option", "{}", r"\emptyset"})


class MultiChoiceParameters(ChoiceParameters):
    accept: tuple[Place, ...] = Field(
        default=("boxed", "answer_tag", "answer_line", "statement", "whole"),
        min_length=1,
        description="where an answer may stand; the first place that holds any text wins; statement: also a last line "
        "such as 'Both A and C are correct.'",
    )
    partial: bool = Field(
        default=False, description="if no wrong option is named, reward the share of the right options that is named"
    )


class MultiChoiceVerifier(Verifier[MultiChoiceParameters]):
    name: ClassVar[str] = "multi-choice"
    summary: ClassVar[str] = "a set of options, by letters or texts: all the right options and no wrong option"
    parameters: ClassVar[type[MultiChoiceParameters]] = MultiChoiceParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: MultiChoiceParameters, /) -> Verdict:
        reference = parse_options(reference_text(item.reference), parameters)
        if reference is None:
            raise BadReferenceError(
                f"the reference {shorten(item.reference)} names no set of options: write letters separated by commas"
            )
        extracted = find(item.completion, parameters, item.prompt)
        if "statement" in parameters.accept and _is_unmarked(extracted):
            stated = _stated_options(final_part(item.completion, parameters.think_tag, item.prompt) or "")
            extracted = ExtractedAnswer(stated, "statement") if stated else extracted
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        answer = parse_options(extracted.answer, parameters)
        if answer is None:
            rule = hacking.SEVERAL_ANSWERS if _OR.search(extracted.answer) else ""
            rule = hacking.LOOK_ALIKE if hacking.has_look_alikes(extracted.answer) else rule
            return Verdict.wrong(extracted.answer, f"no set of options: {shorten(extracted.answer)}", rule)
        letters = ", ".join(sorted(answer))
        if answer == reference:
            return Verdict.right(letters, "the right options")
        wrong = answer - reference
        if wrong:
            everything = len(answer) > 1 and answer == set(parameters.allowed_letters)
            rule = hacking.SEVERAL_ANSWERS if everything else ""
            return Verdict.wrong(letters, f"wrong options: {', '.join(sorted(wrong))}", rule)
        reward = len(answer) / len(reference) if parameters.partial else 0.0
        return Verdict(reward, False, letters, f"{len(answer)} of {len(reference)} options named")


def _is_unmarked(extracted: ExtractedAnswer) -> bool:
    if extracted.answer is None:
        return not extracted.rule
    return extracted.reason in ("statement", "whole")


def _stated_options(text: str) -> str | None:
    """The letters in a last line such as "Both A and C are correct.", "The correct options are A and C." or 故选AC."""
    line = normalise(text.rstrip().rpartition("\n")[2])
    if len(line) > MAX_STATED_CHARS:
        return None
    match = next(filter(None, (pattern.search(line) for pattern in _STATED)), None)
    return (match["list"] or match["han"]).replace("和", ",").replace("与", ",") if match is not None else None


def parse_options(text: str, parameters: MultiChoiceParameters) -> frozenset[str] | None:
    """The set of letters that `text` names; None if it names no letters, or alternatives ("A or C")."""
    text = strip_latex_text(normalise(text)).strip()
    if " ".join(text.casefold().split()).strip(". ") in _NONE:
        return frozenset()
    if _OR.search(text):
        return None
    text = _LABEL.sub("", text.replace("、", ","), count=1)
    if match := _RUN.match(text):
        letters = match["run"]
        return frozenset(letters) if set(letters) <= set(parameters.allowed_letters) else None
    if _LETTERS.match(text):
        letters = "".join(_LETTER.findall(text)).upper()
        return frozenset(letters) if letters and set(letters) <= set(parameters.allowed_letters) else None
    letters_of_parts = [match_option(part, parameters) for part in _PARTS.split(text) if part.strip(" .")]
    if letters_of_parts and all(letters_of_parts):
        return frozenset(letter for letter in letters_of_parts if letter)
    option = match_option(text, parameters)
    return frozenset({option}) if option is not None else None
