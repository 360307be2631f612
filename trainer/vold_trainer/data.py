"""What a run trains and tests on: examples, whatever file or world they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

Message = Mapping[str, Any]
"""A chat message: {"role", "content"}, content a string or a list of {"type": "text", "text"} / {"type": "image"}."""


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    messages: what the student reads, ending with the user's turn. images: one for each image part, in order.
    category: what results are also reported by. meta: anything else, kept as it is.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    images: tuple[Image.Image, ...] = ()
    category: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
