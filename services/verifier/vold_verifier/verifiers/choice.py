"""`choice`: the answer is one of several options, named by its letter or by its text.

An answer with several letters ("A or B") is wrong, and a letter that is an article or a pronoun ("A long story", "I
think") names no option. Letters are ASCII after NFKC, or the first letters of a script that orders options by them: a
Cyrillic А is not an A.
"""

import re
from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Place, answer_lines, final_part, read_place
from vold_verifier.reading.text import normalise, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers import options, prose
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.options import ALPHABET, MAX_ANSWER_CHARS, match_option

_ALONE = re.compile(r"(?<![A-Za-zÀ-ɏ\d'’])[A-Z](?![A-Za-zÀ-ɏ\d'’])")
_MARKS = " \t\n*_$`.,:;!?()[]{}\"'。，：；！？"


class ChoiceParameters(options.ChoiceParameters):
    accept: tuple[Place | Literal["prose"], ...] = Field(  # type: ignore[assignment]
        default=("boxed", "answer_tag", "answer_line", "prose", "whole"),
        min_length=1,
        description="as for other verifiers; prose: statements such as 'The answer is (B)' or 'I think B is correct'",
    )


class ChoiceVerifier(Verifier[ChoiceParameters]):
    name: ClassVar[str] = "choice"
    summary: ClassVar[str] = "one of several options, by letter or by text; an answer with several letters is wrong"
    parameters: ClassVar[type[ChoiceParameters]] = ChoiceParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: ChoiceParameters, /) -> Verdict:
        reference = _reference_letter(item.reference, parameters)
        answer, source, rule = read_option(item, parameters)
        if answer is None:
            return Verdict.wrong(None, source, rule)
        if answer == reference:
            return Verdict.right(answer, f"the right option ({source})")
        return Verdict.wrong(answer, f"another option ({source})")


def _reference_letter(reference: str, parameters: ChoiceParameters) -> str:
    text = normalise(reference)
    letter = match_option(text, parameters)
    if (
        letter is None
        and (match := re.match(r"^\s*\(?([A-Z])(?:[).:]|\s)", text))
        and match[1] in parameters.allowed_letters
    ):
        letter = match[1]
    if letter is None:
        allowed_letters = parameters.allowed_letters if parameters.allowed_letters != ALPHABET else "A to Z"
        raise BadReferenceError(f"the reference names none of the options {allowed_letters}: {shorten(reference)}")
    return letter


def read_option(item: Item, parameters: ChoiceParameters) -> tuple[str | None, str, str]:
    """(the letter of the option, the place of the answer, "") or (None, the reason, the anti-hacking rule or "")."""
    text = final_part(item.completion, parameters.think_tag, item.prompt)
    if text is None:
        return None, f"the thinking never ends: no </{parameters.think_tag}>", hacking.UNCLOSED_TAG
    if item.prompt:
        is_reasoned = len(item.completion) - len(text) >= hacking.MIN_REASONING_CHARS
        text = hacking.remove_echo(text, item.prompt, is_reasoned=is_reasoned)
    if hacking.has_hidden_characters(text[-MAX_ANSWER_CHARS:]):
        return (
            None,
            "the answer contains hidden characters, or characters that reverse the direction of text",
            hacking.HIDDEN_CHARACTERS,
        )
    text = normalise(text)
    for place in parameters.accept:
        if place == "prose":
            letter = prose.last_stated_option(text, parameters)
        elif place == "answer_line":
            letter = _last_option(answer_lines(text), parameters)
        elif (extracted := read_place(text, place, parameters)) is None:
            continue
        elif extracted.answer is None:
            return None, extracted.reason, extracted.rule
        else:
            if place == "boxed" and (letter := _read_after_box(text, extracted.end, parameters)) is not None:
                return letter, "after the box", ""
            letter = match_option(extracted.answer, parameters)
            if letter is None and place == "answer_tag":
                letter = prose.last_stated_option(extracted.answer, parameters)
            if letter is None and place in ("boxed", "answer_tag"):
                rule = _rule_of_no_option(extracted.answer, parameters)
                if place == "boxed" and not rule and "prose" in parameters.accept:
                    letter = prose.last_stated_option(text[extracted.end :], parameters)
                    if letter is not None:
                        return letter, "after the box", ""
                reason = f"the {extracted.reason} answer does not name exactly one option: {shorten(extracted.answer)}"
                return None, reason, rule
        if letter is not None:
            return letter, place.replace("_", " "), ""
    if text.strip():
        last_line = text.rstrip().rpartition("\n")[2]
        return None, "no statement names exactly one option", _rule_of_no_option(last_line, parameters)
    if len(text) < len(item.completion):
        return None, "there is no text after the thinking", hacking.ANSWER_IN_THINKING
    return None, "the completion is empty", hacking.EMPTY_ANSWER


def _last_option(lines: list[str], parameters: ChoiceParameters) -> str | None:
    """The option of the last of `lines` that names exactly one option."""
    letters = (match_option(line, parameters) for line in reversed(lines))
    return next((letter for letter in letters if letter is not None), None)


def _read_after_box(text: str, end: int, parameters: ChoiceParameters) -> str | None:
    """The option that an answer tag or an answer line names after the last box: the box may be a formula on the way."""
    rest = text[end:]
    if "answer_tag" in parameters.accept and "<" in rest:
        extracted = read_place(rest, "answer_tag", parameters)
        if extracted is not None and extracted.answer is not None:
            return match_option(extracted.answer, parameters)
    if "answer_line" in parameters.accept and "\n" in rest.strip(" "):
        return _last_option(answer_lines(text, end), parameters)
    return None


def _rule_of_no_option(text: str, parameters: ChoiceParameters) -> str:
    """The anti-hacking rule that `text` breaks if it names no option, or ""."""
    text = text[: prose.MAX_STATED_CHARS]
    if hacking.has_look_alikes(text):
        return hacking.LOOK_ALIKE
    bare = text.strip(_MARKS)
    letters = set(bare) if bare.isalpha() and bare.isupper() else set(_ALONE.findall(text))
    return hacking.SEVERAL_ANSWERS if len(letters & set(parameters.allowed_letters)) > 1 else ""
