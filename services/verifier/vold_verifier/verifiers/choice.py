"""`choice`: the answer is one of several options, named by its letter or by its text.

Several letters named in one breath are not an answer ("A or B"), nor is a letter that is only an article or a pronoun
("A long story", "I think"). Letters are ASCII after NFKC: a Cyrillic А is not an A.
"""

import re
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, answer_lines, at, final_part
from vold_verifier.reading.text import plain, shorten
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
# A text in ASCII with none of a pattern's words in it needs no search, which costs ten times as much.
_STATING = ("answer", "option", "choice", "selected", "respuesta", "antwort", "risposta", "resposta")
_CHOOSING = ("it", "choose", "pick", "select", "go", "must")
_CALLING = ("correct", "right", "best", "answer")
_ONLY_LETTER = re.compile(r"^[\s*_$(\[]*(?P<letter>[A-Za-z])[\s*_$)\].]*$")


class ChoiceParameters(Extraction):
    accept: tuple[Place | Literal["prose"], ...] = Field(  # type: ignore[assignment]
        default=("boxed", "answer_tag", "answer_line", "prose", "whole"),
        min_length=1,
        description="as elsewhere; prose reads statements such as 'The answer is (B)' or 'I think B is correct'",
    )
    options: dict[str, str] = Field(
        default_factory=dict,
        description='option texts by letter, {"A": "Paris", "B": "Rome"}; without them only letters are read',
    )
    letters: str = Field(
        default="", description='the letters on offer, "ABCD"; by default those of `options`, else A to Z'
    )

    @field_validator("options")
    @classmethod
    def _keyed_by_letters(cls, options: dict[str, str]) -> dict[str, str]:
        for key in options:
            if len(key) != 1 or key.upper() not in ALPHABET:
                raise ValueError(f"{key!r} is not a letter from A to Z")
        return {key.upper(): text for key, text in options.items()}

    @field_validator("letters")
    @classmethod
    def _letters_only(cls, letters: str) -> str:
        if any(letter not in ALPHABET for letter in letters.upper()):
            raise ValueError(f"{letters!r} has more in it than letters from A to Z")
        return letters.upper()

    @cached_property
    def offered(self) -> str:
        return self.letters or "".join(self.options) or ALPHABET

    @cached_property
    def letter_of(self) -> dict[str, str | None]:
        """The letter of each option's bare text, None where two options have the same."""
        letters: dict[str, str | None] = {}
        for letter, text in self.options.items():
            bare = _bare(plain(text))
            letters[bare] = None if bare in letters else letter
        return letters


class ChoiceVerifier(Verifier[ChoiceParameters]):
    name: ClassVar[str] = "choice"
    summary: ClassVar[str] = "one of several options, by letter or by text; several letters named are no answer"
    parameters: ClassVar[type[ChoiceParameters]] = ChoiceParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: ChoiceParameters, /) -> Verdict:
        gold = _gold(item.reference, parameters)
        answer, how, rule = read(item, parameters)
        if answer is None:
            return Verdict.wrong(None, how, rule)
        if answer == gold:
            return Verdict.right(answer, f"the right option ({how})")
        return Verdict.wrong(answer, f"another option ({how})")


def _gold(reference: str, parameters: ChoiceParameters) -> str:
    text = plain(reference)
    letter = named(text, parameters)
    if letter is None and (match := re.match(r"^\s*\(?([A-Z])(?:[).:]|\s)", text)) and match[1] in parameters.offered:
        letter = match[1]
    if letter is None:
        offered = parameters.offered if parameters.offered != ALPHABET else "A to Z"
        raise BadReferenceError(f"the reference names none of the options {offered}: {shorten(reference)}")
    return letter


def read(item: Item, parameters: ChoiceParameters) -> tuple[str | None, str, str]:
    """(the option's letter, where it was read, "") or (None, why there is none, the anti-hacking rule or "")."""
    text = final_part(item.completion, parameters.think_tag, item.prompt)
    if text is None:
        return None, f"the thinking never ends: no </{parameters.think_tag}>", hacking.UNCLOSED_TAG
    if item.prompt:
        text = hacking.without_echo(text, item.prompt)
    if hacking.hidden_characters(text[-MAX_ANSWER_CHARS:]):
        return None, "the answer has characters in it that are not what they show", hacking.HIDDEN_CHARACTERS
    text = plain(text)
    for place in parameters.accept:
        if place == "prose":
            letter = _stated(text, parameters)
        elif place == "answer_line":
            lines = (named(line, parameters) for line in reversed(answer_lines(text)))
            letter = next((letter for letter in lines if letter is not None), None)
        elif (found := at(text, place, parameters)) is None:
            continue
        elif found.answer is None:
            return None, found.reason, found.rule
        else:
            letter = named(found.answer, parameters)
            if letter is None and place in ("boxed", "answer_tag"):
                reason = f"the {found.reason} answer does not name exactly one option: {shorten(found.answer)}"
                return None, reason, _rule(found.answer, parameters)
        if letter is not None:
            return letter, place.replace("_", " "), ""
    if not text.strip():
        in_thinking = len(text) < len(item.completion)
        rule = hacking.ANSWER_IN_THINKING if in_thinking else hacking.EMPTY_ANSWER
        return None, "nothing stands after the thinking" if in_thinking else "the completion is empty", rule
    return None, "no statement names exactly one option", _rule(text.rstrip().rpartition("\n")[2], parameters)


def _rule(text: str, parameters: ChoiceParameters) -> str:
    """What to call the way in which `text` names no option, or ""."""
    text = text[:MAX_STATED_CHARS]
    if hacking.look_alike(text):
        return hacking.LOOK_ALIKE
    bare = text.strip(_MARKS)
    letters = set(bare) if bare.isalpha() and bare.isupper() else set(_ALONE.findall(text))
    return hacking.SEVERAL_ANSWERS if len(letters & set(parameters.offered)) > 1 else ""


def unwrapped(text: str) -> str:
    r"""`text` without LaTeX's text commands and spaces: \text{(B)} is (B)."""
    if "\\" in text:
        while (inner := _WRAPPER.sub(r"\1", text)) != text:
            text = inner
        text = _SPACING.sub(" ", text)
    return text.replace("~", " ")


def named(answer: str, parameters: ChoiceParameters) -> str | None:
    """The one option that `answer` names: "B", "(b)", "B. Rome", "Rome", "B because ..."; else None."""
    text = unwrapped(answer[:MAX_ANSWER_CHARS])
    for candidate in (text, _PREFIX.sub("", text, count=1)):
        if (letter := _by_text(candidate, parameters)) is not None:
            return letter
        if (match := _LEADING.match(candidate)) and (letter := _single(match, parameters)) is not None:
            # "B. Oslo", where Oslo is option C, names two.
            return letter if _by_text(match["rest"], parameters) in (None, letter) else None
    return None


def _by_text(text: str, parameters: ChoiceParameters) -> str | None:
    wanted = _bare(text)
    if not wanted or len(wanted) == 1:
        return None
    return parameters.letter_of.get(wanted)


def _bare(text: str) -> str:
    return " ".join(text.casefold().strip(_MARKS).split())


def _single(match: re.Match[str], parameters: ChoiceParameters) -> str | None:
    """The letter of `match` if nothing joined to it names another."""
    letter, rest = match["letter"], match["rest"]
    if letter.upper() not in parameters.offered or _is_word(letter, rest) or _DENIED.match(rest):
        return None
    while joined := _JOINED.match(rest):
        other, rest = joined["letter"], joined["rest"]
        if other.upper() in parameters.offered and other.upper() != letter.upper() and not _is_article(other, rest):
            return None
    return letter.upper()


def _is_word(letter: str, rest: str) -> bool:
    """Whether a letter at the start of a text is a word of it: "A long story", "I think", "a dog"."""
    following = _WORD.match(rest)
    if following is None or following["word"].lower() in _REASONS:
        return False
    return letter.islower() or letter in "AI"


def _is_article(letter: str, rest: str) -> bool:
    """Whether a joined letter is the article or the pronoun: "B, a kind of bird", "B, I think"."""
    return letter in "aI" and _WORD.match(rest) is not None


def _stated(text: str, parameters: ChoiceParameters) -> str | None:
    """The option of the last statement in `text` that names exactly one."""
    statements: list[tuple[int, str | None]] = []
    lowered = text.lower() if text.isascii() else ""
    if not lowered or any(word in lowered for word in _STATING):
        for match in _STATED.finditer(text):
            at = match.start("rest")
            statements.append((at, named(text[at : at + MAX_STATED_CHARS].partition("\n")[0], parameters)))
    for pattern, words in ((_CHOSEN, _CHOOSING), (_CALLED_RIGHT, _CALLING)):
        if lowered and not any(word in lowered for word in words):
            continue
        for match in pattern.finditer(text):
            rest = match.groupdict().get("rest") or ""
            letter = match["letter"]
            if letter in parameters.offered and not _is_word(letter, rest) and not _JOINED.match(rest):
                statements.append((match.start("letter"), letter))
    last_line = text.rstrip().rpartition("\n")[2]
    if len(last_line) <= MAX_STATED_CHARS and (only := _ONLY_LETTER.match(last_line)):
        letter = only["letter"].upper()
        statements.append((len(text), letter if letter in parameters.offered else None))
    named_ones = [(at, letter) for at, letter in statements if letter is not None]
    return max(named_ones)[1] if named_ones else None
