"""Fields of a row that every command reads in the same way, and refuses in the same words."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from vold_trainer.data.numbers import number_text
from vold_trainer.data.parsing import parse_json, reason
from vold_trainer.data.quoting import quote

MAX_SHOWN = 80
"""Characters of a field's value in an error."""

MAX_OPTIONS = len(ascii_uppercase)
"""Options in a list: each has a letter."""


class FieldError(ValueError):
    """A field has a value that cannot be used. problem: as it follows the field's name, with value and remedy."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r} {problem}")
        self.field = field
        self.problem = problem

    @classmethod
    def of(cls, field: str, value: Any, remedy: str) -> "FieldError":
        """The error that quotes the value."""
        return cls(field, f"is {quote(value, MAX_SHOWN)}: {remedy}")


def reference_text(value: Any) -> str:
    """The reference answer, a text or a number, as text. Raises FieldError."""
    text = value if isinstance(value, str) else number_text(value)
    if text is None:
        raise FieldError.of("reference", value, "give the reference answer as text or a number")
    return text


def completion_text(value: Any) -> str:
    """The text of a completion. Raises FieldError."""
    if not isinstance(value, str):
        raise FieldError.of("completion", value, "give the text of the completion")
    return value


def read_parameters(value: Any) -> dict[str, Any]:
    """The parameters of a verifier: an object, or the same as JSON text. Raises FieldError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise FieldError.of("parameters", value, f"not JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise FieldError.of("parameters", value, "give an object with the verifier's parameters")
    return dict(value)


def read_options(value: Any) -> dict[str, str]:
    """The texts of options by letter, from [text, ...], {"A": text, ...} or [{"A": text}, ...]. A number is a text too.

    Raises FieldError.
    """
    parts = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not any(isinstance(part, Mapping) for part in value):
        if len(value) > MAX_OPTIONS:
            raise FieldError("options", f"holds {len(value)} texts, over the limit of {MAX_OPTIONS}: send fewer")
        parts = [{letter: text} for letter, text in zip(ascii_uppercase, value, strict=False)]
    options: dict[str, str] = {}
    for part in parts:
        if not isinstance(part, Mapping):
            raise FieldError("options", f'holds {quote(part)}: give [text, ...] or {{"A": text, ...}}')
        for letter, text in part.items():
            if text is None and len(part) > 1:
                continue  # Parquet gives every row the letters that any row has
            if letter in options:
                raise FieldError("options", f"names {quote(letter)} twice: give each option one text")
            words = text if isinstance(text, str) else number_text(text)
            if words is None:
                raise FieldError("options", f"has {quote(text)} for {quote(letter)}: give a text or a number")
            options[letter] = words
    return options
