"""What the adapters share: reading a row's columns, writing its question, and what an adapter is."""

import ast
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from vold_trainer.data import Example
from vold_trainer.data.images import Images, Picture
from vold_trainer.errors import UsageError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Wording = Literal["boxed", "own"]
ReadPicture = Callable[[Any, str], Any]
"""(what a column holds, where it stands) to the picture that an Example keeps."""

UNMARKED = ("boxed", "answer_tag", "answer_line", "statement", "last_number")
"""Where a number may stand in an answer to a prompt that asks for no box."""
FREE = r"Put the final answer in \boxed{}."
LETTER = r"Put the letter of the right option in \boxed{}."


@dataclass(frozen=True)
class Outcome:
    """One judged completion. correct: None where nobody could judge it."""

    example: Example
    correct: bool | None


Figures = Mapping[str, Sequence[float]]
"""Figures of a benchmark by name, each as the values whose mean it is: one value a unit that stands by itself."""


@dataclass(frozen=True)
class Adapter:
    """How one benchmark's rows become examples.

    example: the row to an Example, in one of the two wordings. aggregate: the benchmark's own figures from one outcome
    a row, where it has some. columns, source: what it reads, and where such rows are published. also: columns that it
    reads where other copies of the benchmark have them in place of those.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    example: Callable[["Row", Wording], Example]
    aggregate: Callable[[Sequence[Outcome]], Figures] | None = None
    also: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column that it looks at."""
        return (*self.columns, *self.also)


@dataclass
class Row:
    """One row of a benchmark: its columns, and where it stands for error messages."""

    columns: Mapping[str, Any]
    where: str
    picture: ReadPicture

    def fault(self, column: str, remedy: str) -> UsageError:
        value = f"is {str(self.columns[column])[:80]!r}" if column in self.columns else "is missing"
        return UsageError(f"{self.where}: column {column!r} {value}: {remedy}")

    def text(self, column: str) -> str:
        """A column that has to hold text or a number. Raises UsageError where it holds nothing."""
        value = self.maybe(column)
        if not value:
            raise self.fault(column, "give text")
        return value

    def maybe(self, column: str) -> str:
        """A column's text or number as text; empty where it holds nothing."""
        value = self.columns.get(column)
        if value is None:
            return ""
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise self.fault(column, "give text")
        return str(value).strip()

    def texts(self, column: str) -> list[str]:
        """A column of several texts: a list, or a list written as text, as MMMU has it; empty where there is none."""
        value = self.columns.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                raise self.fault(column, "give a list of texts") from None
        if value is None or (isinstance(value, str) and not value.strip()):
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.fault(column, "give a list of texts")
        return [str(item) for item in value]

    def words(self, column: str) -> list[str]:
        """A column of one or several names: a text, a list, or a list written as text."""
        value = self.columns.get(column)
        if isinstance(value, str) and not value.lstrip().startswith("["):
            return [value.strip()] if value.strip() else []
        return self.texts(column)

    def answer(self, column: str, remedy: str) -> str:
        """The reference answer. Raises UsageError with `remedy` where the split hides it."""
        value = self.maybe(column)
        if not value:
            raise self.fault(column, remedy)
        return value

    def fields(self, column: str) -> Mapping[str, Any]:
        """A column of named values; empty where there is none."""
        value = self.columns.get(column)
        return value if isinstance(value, Mapping) else {}

    def image(self, *columns: str) -> Any:
        """The picture of the first of `columns` that holds one. Raises UsageError where none does."""
        found = self.maybe_image(*columns)
        if found is None:
            raise self.fault(columns[0], "give a picture, its bytes, or its path")
        return found

    def maybe_image(self, *columns: str) -> Any | None:
        for column in columns:
            value = self.columns.get(column)
            if value is not None and value != "":
                return self.picture(value, f"{self.where}: column {column!r}")
        return None


@dataclass
class Question:
    """The user's turn as it is put together: texts and pictures in order."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    def picture(self, image: Any | None) -> "Question":
        if image is not None:
            self.parts.append({"type": "image"})
            self.images.append(image)
        return self

    def text(self, text: str) -> "Question":
        if text:
            self.parts.append({"type": "text", "text": text})
        return self

    def example(
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
        """facets: further names to report by, {"level": "3"}. meta: what the benchmark's own figures need."""
        named = {name: value for name, value in (facets or {}).items() if value}
        pictures = [image for image in self.images if isinstance(image, Picture)]
        content: Any = self.parts if self.images else "".join(part["text"] for part in self.parts)
        return Example(
            id=id,
            messages=({"role": "user", "content": content},),
            reference=reference,
            images=Images(pictures) if len(pictures) == len(self.images) > 0 else tuple(self.images),
            category=category,
            meta={"verifier": verifier, "parameters": dict(parameters), "facets": named, **meta},
        )


def read_picture(folder: Path) -> ReadPicture:
    """Reads a PIL picture, the {"bytes", "path"} of `datasets`, bytes, or a path below `folder`, as RGB.

    What is transparent becomes white, as a page would show it. Raises UsageError that names the column.
    """

    def read(value: Any, where: str) -> Image.Image:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        try:
            if isinstance(value, Image.Image):
                return _opaque(value)
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else folder / str(value)) as image:
                return _opaque(image)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise UsageError(f"{where} is no picture that can be read: {error}") from error

    return read


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Options by letter: {"A": first, ...}."""
    return dict(zip(LETTERS, texts, strict=False))


def listed(options: Mapping[str, str]) -> str:
    """Options for a prompt, one a line: (A) first."""
    return "\n".join(f"({letter}) {text}" for letter, text in options.items())


def choice(options: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of `choice`. An option without a text is one that stands in the picture."""
    if any(text.strip() and text.strip() != letter for letter, text in options.items()):
        return {"options": dict(options)}
    return {"letters": "".join(options)} if options else {}


_INLINE = re.compile(r"\(([A-Z])\)\s*")
_LINES = re.compile(r"^\s*([A-Z])\s*[:.]\s*(.+?)\s*$", re.MULTILINE)


def options_in(text: str) -> dict[str, str]:
    """The options that a question names itself, as "(A) yes (B) no" or as lines "A: yes"; none where the letters are
    not A, B, C, ... in order.
    """
    pieces = _INLINE.split(text)
    inline = {letter: words.strip() for letter, words in zip(pieces[1::2], pieces[2::2], strict=True)}
    for found in (inline, dict(_LINES.findall(text))):
        if len(found) > 1 and "".join(found) == LETTERS[: len(found)]:
            return found
    return {}
