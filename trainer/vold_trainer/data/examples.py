"""An example: a prompt, its text version for the teacher, and the reference answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vold_trainer.data.images import LazyImages

Message = Mapping[str, Any]
"""A chat message: {"role", "content"}, content a string or a list of {"type": "text", "text"} / {"type": "image"}."""


def require_characters(value: Any) -> None:
    """Raise ValueError if a text in the value cannot be sent: JSON may hold half of a character, such as "\\ud83d"."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"its text holds {half}, which is half of a character: take it out") from error


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    messages: the student's prompt, ending with the user's turn. images: one per image part, in order; images of files
    are decoded on access. category: results are also reported per category. meta: further data. twin: a text version of
    the messages for the teacher, which reads text only; None if the teacher reads the messages themselves. where: names
    the example's row in messages, FILE:LINE or FILE[ROW]; no part of its content.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    images: Sequence[Image.Image] = ()
    category: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    twin: tuple[Message, ...] | None = None
    where: str = field(default="", compare=False, repr=False)

    def check_unicode(self) -> None:
        """Raise ValueError if a text cannot be sent: JSON may hold half of a character, such as "\\ud83d"."""
        texts = [self.id, self.category, self.messages, self.twin, self.reference, dict(self.meta)]
        require_characters(texts)

    @property
    def label(self) -> str:
        """The row's place, if it has one, and its id, for messages."""
        name = f"row {self.id!r}"
        return name if not self.where else self.where if self.where == self.id else f"{self.where}: {name}"

    @property
    def prompt_text(self) -> str:
        """The text of the last turn, with [image] for an image part, for people and verifiers."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] if part["type"] == "text" else "[image]" for part in content)

    @property
    def pixels(self) -> int:
        """Pixels of all images together, without decoding images of files."""
        if isinstance(self.images, LazyImages):
            return self.images.pixels
        return sum(image.width * image.height for image in self.images)
