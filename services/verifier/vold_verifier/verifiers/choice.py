"""`choice`: the answer is one of several options, named by its letter or by its text.

An answer with several letters ("A or B") is wrong, and a letter that is an article or a pronoun ("A long story", "I
think") names no option. Letters are ASCII after NFKC: a Cyrillic А is not an A.
"""

import re
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, answer_lines, final_part, read_place
from vold_verifier.reading.text import normalise, shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_STATED_CHARS = 200
MAX_ANSWER_CHARS = 2000

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|rm|bf)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:! ]|~")
_PREFIX = re.compile(
    r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)\s*(?:is\b|[:：])?\s*", re.IGNORECASE
)
_LEADING = re.compile(r"^[\s*_$(\[{\"']*(?P<letter>[A-Za-z])(?![A-Za-zÀ-ɏ\d'’])(?P<rest>.*)$", re.DOTALL)
_JOINED = re.compile(
    r"^[\s*_$)\]}.]*(?:/|,|，|、|;|&|\+|\bor\b|\band\b|或|和|\bet\b|\bou\b|\by\b|\bund\b|\boder\b)\s*(?:also\s+|maybe\s+)?"
    r"[(\[*_${]*(?P<letter>[A-Za-z])(?![A-Za-zÀ-ɏ\d'’])(?P<rest>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"^\s+(?P<word>[a-z]+)", re.IGNORECASE)
_REASONS = frozenset(
    {"because", "since", "as", "is", "was", "not", "non", "but", "while", "which", "for", "so", "and", "or", "rather"}
    | {"instead", "due", "car", "weil", "porque"}
)
_MARKS = " \t\n*_$`.,:;!?()[]{}\"'。，：；！？"
_STATED = re.compile(
    r"(?:\b(?:answer|option|choice|selected|réponse|respuesta|antwort|risposta|resposta)\b|答案|选项|选择)"
    r"(?:\s{1,4}(?:is|for|sure|est|es|ist|lautet|selected|should|would|must|be|option|choice|definitely|clearly|therefore|thus))*"
    r"[*_\s]{0,8}(?:是|为|[:：])?[*_\s]{0,8}(?=(?P<rest>\S))",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"\b(?i:it's|it\s+is|choose|pick|select|go\s+with|must\s+be)\s+(?i:option\s+)?[*_(\[]*(?P<letter>[A-Z])(?![A-Za-zÀ-ɏ\d'’])(?P<rest>[^\n]{0,80})"
)
_DENIED = re.compile(
    r"^[\s*_$)\]}.\"']*(?:(?:is|was|are|seems|looks)\s+(?:not|wrong|incorrect|false)\b|isn't|wasn't|can't|cannot)",
    re.IGNORECASE,
)
_CALLED_RIGHT = re.compile(
    r"(?<![A-Za-zÀ-ɏ\d'’])(?P<letter>[A-Z])[*_)\]]*\s+(?:is|would\s+be|must\s+be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
)
_ALONE = re.compile(r"(?<![A-Za-zÀ-ɏ\d'’])[A-Z](?![A-Za-zÀ-ɏ\d'’])")
# If an ASCII text has none of these words, the pattern cannot match; a search would take ten times as long.
_STATING = ("answer", "option", "choice", "selected", "respuesta", "antwort", "risposta", "resposta")
_CHOOSING = ("it", "choose", "pick", "select", "go", "must")
_CALLING = ("correct", "right", "best", "answer")
_ONLY_LETTER = re.compile(r"^[\s*_$(\[]*(?P<letter>[A-Za-z])[\s*_$)\].]*$")


class ChoiceParameters(Extraction):
    accept: tuple[Place | Literal["prose"], ...] = Field(  # type: ignore[assignment]
        default=("boxed", "answer_tag", "answer_line", "prose", "whole"),
        min_length=1,
        description="as for other verifiers; prose: statements such as 'The answer is (B)' or 'I think B is correct'",
    )
    options: dict[str, str] = Field(
        default_factory=dict,
        description='option texts by letter, {"A": "Paris", "B": "Rome"}; without texts only letters are read',
    )
    letters: str = Field(
        default="", description='the letters of the options, "ABCD"; by default those of `options`, else A to Z'
    )

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, str]) -> dict[str, str]:
        for key in options:
            if len(key) != 1 or key.upper() not in ALPHABET:
                raise ValueError(f"{key!r} is not a letter from A to Z")
        return {key.upper(): text for key, text in options.items()}

    @field_validator("letters")
    @classmethod
    def _check_letters(cls, letters: str) -> str:
        if any(letter not in ALPHABET for letter in letters.upper()):
            raise ValueError(f"{letters!r} has characters other than letters from A to Z")
        return letters.upper()

    @cached_property
    def allowed_letters(self) -> str:
        return self.letters or "".join(self.options) or ALPHABET

    @cached_property
    def letter_by_text(self) -> dict[str, str | None]:
        """The letter of each option by its normalised text; None if two options have the same text."""
        letters: dict[str, str | None] = {}
        for letter, text in self.options.items():
            option_text = _normalise_text(normalise(text))
            letters[option_text] = None if option_text in letters else letter
        return letters


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
        text = hacking.remove_echo(text, item.prompt)
    if hacking.has_hidden_characters(text[-MAX_ANSWER_CHARS:]):
        return (
            None,
            "the answer contains hidden characters, or characters that reverse the direction of text",
            hacking.HIDDEN_CHARACTERS,
        )
    text = normalise(text)
    for place in parameters.accept:
        if place == "prose":
            letter = _read_prose(text, parameters)
        elif place == "answer_line":
            lines = (match_option(line, parameters) for line in reversed(answer_lines(text)))
            letter = next((letter for letter in lines if letter is not None), None)
        elif (extracted := read_place(text, place, parameters)) is None:
            continue
        elif extracted.answer is None:
            return None, extracted.reason, extracted.rule
        else:
            letter = match_option(extracted.answer, parameters)
            if letter is None and place in ("boxed", "answer_tag"):
                reason = f"the {extracted.reason} answer does not name exactly one option: {shorten(extracted.answer)}"
                return None, reason, _rule_of_no_option(extracted.answer, parameters)
        if letter is not None:
            return letter, place.replace("_", " "), ""
    if text.strip():
        last_line = text.rstrip().rpartition("\n")[2]
        return None, "no statement names exactly one option", _rule_of_no_option(last_line, parameters)
    if len(text) < len(item.completion):
        return None, "there is no text after the thinking", hacking.ANSWER_IN_THINKING
    return None, "the completion is empty", hacking.EMPTY_ANSWER


def _rule_of_no_option(text: str, parameters: ChoiceParameters) -> str:
    """The anti-hacking rule that `text` breaks if it names no option, or ""."""
    text = text[:MAX_STATED_CHARS]
    if hacking.has_look_alikes(text):
        return hacking.LOOK_ALIKE
    bare = text.strip(_MARKS)
    letters = set(bare) if bare.isalpha() and bare.isupper() else set(_ALONE.findall(text))
    return hacking.SEVERAL_ANSWERS if len(letters & set(parameters.allowed_letters)) > 1 else ""


def strip_latex_text(text: str) -> str:
    r"""Remove LaTeX text commands and spaces: \text{(B)} becomes (B)."""
    if "\\" in text:
        while (inner := _WRAPPER.sub(r"\1", text)) != text:
            text = inner
        text = _SPACING.sub(" ", text)
    return text.replace("~", " ")


def match_option(answer: str, parameters: ChoiceParameters) -> str | None:
    """The letter of the option that `answer` names: "B", "(b)", "B. Rome", "Rome", "B because ..."; else None."""
    text = strip_latex_text(answer[:MAX_ANSWER_CHARS])
    for candidate in (text, _PREFIX.sub("", text, count=1)):
        if (letter := _match_text(candidate, parameters)) is not None:
            return letter
        if (match := _LEADING.match(candidate)) and (letter := _match_letter(match, parameters)) is not None:
            # "B. Oslo" names two options if Oslo is option C.
            return letter if _match_text(match["rest"], parameters) in (None, letter) else None
    return None


def _match_text(text: str, parameters: ChoiceParameters) -> str | None:
    text = _normalise_text(text)
    if len(text) < 2:
        return None
    return parameters.letter_by_text.get(text)


def _normalise_text(text: str) -> str:
    return " ".join(text.casefold().strip(_MARKS).split())


def _match_letter(match: re.Match[str], parameters: ChoiceParameters) -> str | None:
    """The letter of `match`, unless another letter is joined to it."""
    letter, rest = match["letter"], match["rest"]
    if letter.upper() not in parameters.allowed_letters or _is_word(letter, rest) or _DENIED.match(rest):
        return None
    while joined := _JOINED.match(rest):
        joined_letter, rest = joined["letter"], joined["rest"]
        if (
            joined_letter.upper() in parameters.allowed_letters
            and joined_letter.upper() != letter.upper()
            and not _is_article(joined_letter, rest)
        ):
            return None
    return letter.upper()


def _is_word(letter: str, rest: str) -> bool:
    """Whether the letter at the start of a text is a word: "A long story", "I think", "a dog"."""
    following = _WORD.match(rest)
    if following is None or following["word"].lower() in _REASONS:
        return False
    return letter.islower() or letter in "AI"


def _is_article(letter: str, rest: str) -> bool:
    """Whether a joined letter is an article or a pronoun: "B, a kind of bird", "B, I think"."""
    return letter in "aI" and _WORD.match(rest) is not None


def _read_prose(text: str, parameters: ChoiceParameters) -> str | None:
    """The option of the last statement in `text` that names exactly one option."""
    statements: list[tuple[int, str | None]] = []
    lowered = text.lower() if text.isascii() else ""
    if not lowered or any(word in lowered for word in _STATING):
        for match in _STATED.finditer(text):
            start = match.start("rest")
            statements.append(
                (
                    start,
                    match_option(text[start : start + MAX_STATED_CHARS].partition("\n")[0], parameters),
                )
            )
    for pattern, words in ((_CHOSEN, _CHOOSING), (_CALLED_RIGHT, _CALLING)):
        if lowered and not any(word in lowered for word in words):
            continue
        for match in pattern.finditer(text):
            rest = match.groupdict().get("rest") or ""
            letter = match["letter"]
            if letter in parameters.allowed_letters and not _is_word(letter, rest) and not _JOINED.match(rest):
                statements.append((match.start("letter"), letter))
    last_line = text.rstrip().rpartition("\n")[2]
    if len(last_line) <= MAX_STATED_CHARS and (only := _ONLY_LETTER.match(last_line)):
        letter = only["letter"].upper()
        statements.append((len(text), letter if letter in parameters.allowed_letters else None))
    named = [(start, letter) for start, letter in statements if letter is not None]
    return max(named)[1] if named else None
