"""The options of `choice` and `multi-choice`, and which of them a text names: by letter, or by the option's text."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator

from vold_verifier.mathematics import notation, numbers
from vold_verifier.reading import labels
from vold_verifier.reading.extraction import Extraction
from vold_verifier.reading.text import normalise, shorten, symbols_to_latex
from vold_verifier.verifiers import mentions

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_ANSWER_CHARS = 2000
MAX_OPTION_CHARS = 10_000

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|rm|bf)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:! ]|~")
_PREFIX = re.compile(
    r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)\s*(?:is\b|[:：])?\s*", re.IGNORECASE
)
_LEADING = re.compile(r"^[\s*_$(\[{\"']*(?P<letter>[A-Za-z])(?![A-Za-zÀ-ɏ\d'’])(?P<rest>.*)$", re.DOTALL)
_NOT_BUT = re.compile(
    r"^[\s*_]*(?:not|不是|nicht|non|no|pas)\s*(?:option\s+)?[*_(\[]*[A-Z](?![A-Za-zÀ-ɏ\d'’])[*_)\]]*,?\s*"
    r"(?:but(?:\s+rather)?|而是|sondern|mais|sino|ma)\s*(?:option\s+)?(?P<rest>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_TEXT_AND_LETTER = re.compile(r"^(?P<text>[^()\n]{2,200}?)[\s,]*(?:\((?P<letter>[A-Z])\))[\s.*_]*$")
_OPTION_WORD = re.compile(r"^[\s*_]*(?:选项|選項|选|選|옵션|विकल्प|الخيار|вариант|opción|opzione|opção)\s*[:：]?\s*")
_HAS_MATHEMATICS = re.compile(r"[\d\\$^]|[^\x00-\x7f]")
_MARKS = " \t\n*_$`.,:;!?()[]{}\"'。，：；！？"
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
_LATEX_SPACING = re.compile(r"\s+|\\[,;:! ]")


class ChoiceParameters(Extraction):
    options: dict[str, str] = Field(
        default_factory=dict,
        description='option texts by letter, {"A": "Paris", "B": "Rome"}, or in order, ["Paris", "Rome"]; numbers are '
        "texts too; without texts only letters are read",
    )
    letters: str = Field(
        default="", description='the letters of the options, "ABCD"; by default those of `options`, else A to Z'
    )

    @field_validator("options", mode="before")
    @classmethod
    def _read_options(cls, options: Any) -> Any:
        if isinstance(options, list):
            if all(isinstance(option, dict) and len(option) == 1 for option in options):
                pairs = [pair for option in options for pair in option.items()]
            elif len(options) <= len(ALPHABET):
                pairs = list(zip(ALPHABET, options, strict=False))
            else:
                raise ValueError(f"{len(options)} options, over the limit of {len(ALPHABET)}: send fewer")
        elif isinstance(options, dict):
            pairs = list(options.items())
        else:
            return options
        texts: dict[str, str] = {}
        for key, text in pairs:
            letter = str(key).upper()
            if len(letter) != 1 or letter not in ALPHABET:
                raise ValueError(f"{shorten(str(key))} is not a letter from A to Z")
            if letter in texts:
                raise ValueError(f"the letter {letter!r} is named twice")
            texts[letter] = _option_text(letter, text)
        return texts

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
    def texts(self) -> dict[str, str]:
        """The normalised text of each option by its letter."""
        return {letter: normalise_text(normalise(text)) for letter, text in self.options.items()}

    @cached_property
    def letter_by_text(self) -> dict[str, str | None]:
        """The letter of each option by its normalised text; None if two options have the same text."""
        letters: dict[str, str | None] = {}
        for letter, option_text in self.texts.items():
            letters[option_text] = None if option_text in letters else letter
        return letters

    @cached_property
    def letter_by_latex(self) -> dict[str, str | None]:
        """The letter of each option by its text in one spelling of LaTeX; None if two options have the same text."""
        letters: dict[str, str | None] = {}
        for letter, text in self.options.items():
            latex = _normalise_latex(text)
            letters[latex] = None if latex in letters else letter
        return letters

    @cached_property
    def numbers_of_options(self) -> dict[str, numbers.Number]:
        parsed = {letter: numbers.parse(_normalise_latex(text)) for letter, text in self.options.items()}
        return {letter: number for letter, number in parsed.items() if number is not None}


def _option_text(letter: str, text: Any) -> str:
    """The text of an option. A number that came through protobuf is a float: 4.0 is the text "4"."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"option {letter!r} is {shorten(repr(text))}: give a string or a number")
    if isinstance(text, float) and text.is_integer() and abs(text) < 2**53:
        text = int(text)
    if len(str(text)) > MAX_OPTION_CHARS:
        raise ValueError(f"option {letter!r} has {len(str(text)):,} characters, over {MAX_OPTION_CHARS:,}: shorten it")
    return str(text)


def strip_latex_text(text: str) -> str:
    r"""Remove LaTeX text commands and spaces: \text{(B)} becomes (B)."""
    if "\\" in text:
        while (inner := _WRAPPER.sub(r"\1", text)) != text:
            text = inner
        text = _SPACING.sub(" ", text)
    return text.replace("~", " ")


def match_option(answer: str, parameters: ChoiceParameters) -> str | None:
    """The letter of the option that `answer` names: "B", "(b)", "B. Rome", "Rome", "B because ..."; else None."""
    answer = answer[:MAX_ANSWER_CHARS]
    bare = answer.strip(_MARKS)
    if len(bare) == 1 and bare.upper() in parameters.allowed_letters:
        return bare.upper()
    if letter := _match_latex(answer, parameters):
        return letter
    text = strip_latex_text(answer)
    if not text.isascii():
        text = _latin_option(text)
    for candidate in _without_and_with_prefix(text):
        if (letter := match_text(candidate, parameters)) is not None:
            return letter
        if (
            ")" in candidate[-6:]
            and (match := _TEXT_AND_LETTER.match(candidate))
            and match_text(match["text"], parameters) == match["letter"]
        ):
            return match["letter"]
        if match := _NOT_BUT.match(candidate):
            return match_option(match["rest"], parameters)
        if (match := _LEADING.match(candidate)) and (letter := read_letter(match, parameters)) is not None:
            # "B. Oslo" names two options if Oslo is option C.
            return letter if match_text(match["rest"], parameters) in (None, letter) else None
    return None


def _without_and_with_prefix(text: str) -> Iterator[str]:
    yield text
    yield _PREFIX.sub("", labels.without_label(text), count=1)


def _latin_option(text: str) -> str:
    """`text` without the word for "option", and with its first letter in Latin script, if it is one in another."""
    text = _OPTION_WORD.sub("", text)
    bare = text.lstrip(" *_$([{\"'")
    if bare[:1] in labels.LATIN_LETTERS and not bare[1:2].isalpha():
        return labels.LATIN_LETTERS[bare[0]] + bare[1:]
    return text


def match_text(text: str, parameters: ChoiceParameters) -> str | None:
    """The letter of the option with this text. A text that is the letter of an option is no text."""
    text = normalise_text(text)
    if not text or (len(text) == 1 and text.upper() in parameters.allowed_letters):
        return None
    return parameters.letter_by_text.get(text)


def _match_latex(answer: str, parameters: ChoiceParameters) -> str | None:
    """The letter of the option with this formula, in any spelling, or with this number."""
    if not parameters.options or len(answer) > numbers.MAX_CHARS or not _HAS_MATHEMATICS.search(answer):
        return None
    latex = _normalise_latex(answer)
    if latex in parameters.letter_by_latex:
        return parameters.letter_by_latex[latex]
    number = numbers.parse(latex)
    if number is None:
        return None
    equal = [letter for letter, other in parameters.numbers_of_options.items() if numbers.are_equal(other, number)]
    return equal[0] if len(equal) == 1 else None


def _normalise_latex(text: str) -> str:
    latex = notation.clean(symbols_to_latex(text.strip(" .。")))
    return _LATEX_SPACING.sub("", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", latex).replace("dfrac", "frac"))


def normalise_text(text: str) -> str:
    return " ".join(text.casefold().strip(_MARKS).split())


def read_letter(match: re.Match[str], parameters: ChoiceParameters) -> str | None:
    """The option that `match` names with its groups `letter` and `rest`: see `mentions.settle`."""
    letter, rest = match["letter"], match.groupdict().get("rest") or ""
    if letter.upper() not in parameters.allowed_letters or mentions.is_word(letter, rest):
        return None
    return mentions.settle(letter.upper(), rest, parameters.allowed_letters, parameters.texts)
