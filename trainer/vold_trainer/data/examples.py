"""An example: one prompt, what the teacher reads in its place, and the reference answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vold_trainer.data.images import Images

Message = Mapping[str, Any]
"""A chat message: {"role", "content"}, content a string or a list of {"type": "text", "text"} / {"type": "image"}."""


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    messages: what the student reads, ending with the user's turn. images: one for each image part, in order; those of
    files are decoded when they are looked at. category: what results are also reported by. meta: anything else, kept
    as it is. twin: what a teacher, which reads text only, reads in place of the messages; None where they are text.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    images: Sequence[Image.Image] = ()
    category: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    twin: tuple[Message, ...] | None = None

    @property
    def prompt_text(self) -> str:
        """The last user turn's words, an image part as [image]: what a person or a verifier reads."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] if part["type"] == "text" else "[image]" for part in content)

    @property
    def pixels(self) -> int:
        """Of all images together, without decoding those that are not decoded yet."""
        if isinstance(self.images, Images):
            return self.images.pixels
        return sum(image.width * image.height for image in self.images)
