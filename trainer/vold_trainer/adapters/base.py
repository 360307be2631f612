"""The base of the adapters: reading a row's columns, composing its prompt, and the class Adapter."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vold_trainer.data import Example
from vold_trainer.data.images import LazyImage, LazyImages, read_rgb, to_rgb
from vold_trainer.data.numbers import number_text
from vold_trainer.errors import UsageError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Wording = Literal["boxed", "own"]
ReadImage = Callable[[Any, str], Any]
"""Maps (the value of a column, its place for errors) to an image of an Example."""

UNBOXED_FORMS = ("boxed", "answer_tag", "answer_line", "statement", "last_number")
"""The accepted forms of a number in an answer to a prompt that does not ask for \\boxed{}."""
ASK_ANSWER = r"Put the final answer in \boxed{}."
ASK_LETTER = r"Put the letter of the right option in \boxed{}."


@dataclass(frozen=True)
class Outcome:
    """The verdict on one completion. correct: None if it could not be verified."""

    example: Example
    correct: bool | None


Metrics = Mapping[str, Sequence[float]]
"""Metrics of a benchmark by name. A metric is the mean of its values, one value per independent unit."""


@dataclass(frozen=True)
class Adapter:
    """Converts the rows of one benchmark to examples.

    source: where the rows are published. columns: the columns that it reads. make_example: converts a row, in one of
    the two wordings. aggregate: computes the benchmark's own metrics, if any, from one outcome per row.
    alternative_columns: columns of other copies of the benchmark, read in place of those.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    make_example: Callable[["BenchmarkRow", Wording], Example]
    aggregate: Callable[[Sequence[Outcome]], Metrics] | None = None
    alternative_columns: tuple[str, ...] = ()

    @property
    def all_columns(self) -> tuple[str, ...]:
        return (*self.columns, *self.alternative_columns)


@dataclass
class BenchmarkRow:
    """One row of a benchmark: its columns, and its place for error messages."""

    columns: Mapping[str, Any]
    where: str
    read_image: ReadImage

    def error(self, column: str, remedy: str) -> UsageError:
        value = f"is {str(self.columns[column])[:80]!r}" if column in self.columns else "is missing"
        return UsageError(f"{self.where}: column {column!r} {value}: {remedy}")

    def text(self, column: str) -> str:
        """The text or number of a column, as text. Raises UsageError if it is empty."""
        value = self.optional_text(column)
        if not value:
            raise self.error(column, "give text")
        return value

    def optional_text(self, column: str) -> str:
        """The text or number of a column, as text; may be empty."""
        value = self.columns.get(column)
        if value is None:
            return ""
        text = value if isinstance(value, str) else number_text(value)
        if text is None:
            raise self.error(column, "give text")
        return text.strip()

    def texts(self, column: str) -> list[str]:
        """The texts of a column: a list, or a list written as text, as in MMMU; may be empty."""
        value = self.columns.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # whatever the parser runs into
                raise self.error(column, "give a list of texts") from None
        if value is None or (isinstance(value, str) and not value.strip()):
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.error(column, "give a list of texts")
        return [number_text(item) or str(item) for item in value]

    def options(self, column: str) -> dict[str, str]:
        """The texts of a column as options by letter: {"A": first, ...}."""
        texts = self.texts(column)
        if len(texts) > len(LETTERS):
            raise self.error(column, f"give at most {len(LETTERS)} options: each has a letter")
        return letter_options(texts)

    def names(self, column: str) -> list[str]:
        """The names in a column: a text, a list, or a list written as text; may be empty."""
        value = self.columns.get(column)
        if isinstance(value, str) and not value.lstrip().startswith("["):
            return [value.strip()] if value.strip() else []
        return self.texts(column)

    def answer(self, column: str, remedy: str) -> str:
        """The reference answer. Raises UsageError with `remedy` if it is missing, as in splits that hide it."""
        value = self.optional_text(column)
        if not value:
            raise self.error(column, remedy)
        return value

    def fields(self, column: str) -> Mapping[str, Any]:
        """The named values of a column; may be empty."""
        value = self.columns.get(column)
        return value if isinstance(value, Mapping) else {}

    def image(self, *columns: str) -> Any:
        """The image of the first of `columns` that holds one. Raises UsageError if none does."""
        image = self.optional_image(*columns)
        if image is None:
            raise self.error(columns[0], "give a picture, its bytes, or its path")
        return image

    def optional_image(self, *columns: str) -> Any | None:
        for column in columns:
            value = self.columns.get(column)
            if value is not None and value != "":
                return self.read_image(value, f"{self.where}: column {column!r}")
        return None


@dataclass
class Question:
    """The user's turn: texts and images in order."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    def add_image(self, image: Any | None) -> "Question":
        if image is not None:
            self.parts.append({"type": "image"})
            self.images.append(image)
        return self

    def add_text(self, text: str) -> "Question":
        if text:
            self.parts.append({"type": "text", "text": text})
        return self

    def make_example(
        self,
        id: str,  # noqa: A002 - the field's name
        reference: str,
        verifier: str,
        parameters: Mapping[str, Any],
        *,
        category: str = "",
        facets: Mapping[str, str | Sequence[str]] | None = None,
        **meta: Any,
    ) -> Example:
        """facets: further names to group results by, {"level": "3"}. meta: data for the benchmark's own metrics."""
        named_facets = {name: value for name, value in (facets or {}).items() if value}
        lazy_images = [image for image in self.images if isinstance(image, LazyImage)]
        content: Any = self.parts if self.images else "".join(part["text"] for part in self.parts)
        return Example(
            id=id,
            messages=({"role": "user", "content": content},),
            reference=reference,
            images=LazyImages(lazy_images) if len(lazy_images) == len(self.images) > 0 else tuple(self.images),
            category=category,
            meta={"verifier": verifier, "parameters": dict(parameters), "facets": named_facets, **meta},
        )


def image_reader(folder: Path) -> ReadImage:
    """A function that reads a PIL image, the {"bytes", "path"} of `datasets`, bytes, or a path below `folder`, as RGB.

    Transparent pixels become white. The function raises UsageError that names the column.
    """

    def read(value: Any, where: str) -> Image.Image:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        try:
            if isinstance(value, Image.Image):
                return to_rgb(value)
            return read_rgb(value if isinstance(value, bytes) else folder / str(value))
        except ValueError as error:
            raise UsageError(f"{where} is no picture that can be read: {error}") from error

    return read


def letter_options(texts: Sequence[str]) -> dict[str, str]:
    """Options by letter: {"A": first, ...}."""
    return dict(zip(LETTERS, texts, strict=False))


def format_options(options: Mapping[str, str]) -> str:
    """Options for a prompt, one per line: (A) first."""
    return "\n".join(f"({letter}) {text}" for letter, text in options.items())


def choice_parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of the verifier `choice`. The text of an option is empty if it is in the image."""
    if any(text.strip() and text.strip() != letter for letter, text in options.items()):
        return {"options": dict(options)}
    return {"letters": "".join(options)} if options else {}


_INLINE = re.compile(r"\(([A-Z])\)\s*")
_LINES = re.compile(r"^\s*([A-Z])\s*[:.]\s*(.+?)\s*$", re.MULTILINE)


def find_options(text: str) -> dict[str, str]:
    """The options in the text of a question, as "(A) yes (B) no" or as lines "A: yes"; empty if the letters are not
    A, B, C, ... in order.
    """
    pieces = _INLINE.split(text)
    inline = {letter: words.strip() for letter, words in zip(pieces[1::2], pieces[2::2], strict=True)}
    for options in (inline, dict(_LINES.findall(text))):
        if len(options) > 1 and "".join(options) == LETTERS[: len(options)]:
            return options
    return {}
