"""Chat messages as a row gives them, made what a chat template takes: content a string, or parts of text and image."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vold_trainer.data.columns import without_nulls
from vold_trainer.data.examples import Message

SOURCES = ("image", "path", "url", "bytes", "base64", "image_url")
"""Under which keys an image part may bring its picture along."""


def read_messages(value: Any) -> tuple[list[Message], list[Any]]:
    """(messages with plain image places, the pictures that the image parts brought along, in order).

    value: a list of {"role", "content"}, or the same as JSON text. Raises ValueError, which begins with the place in
    the list where something is wrong ("[2].content: ..."), or with ": ".
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f" is text, and not JSON ({error}): give a list of role and content") from error
    if not isinstance(value, list) or not value:
        raise ValueError(f" is {str(value)[:60]!r}: give a list of role and content")
    messages: list[Message] = []
    pictures: list[Any] = []
    for index, message in enumerate(value):
        message = without_nulls(message)
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"[{index}] is {str(message)[:60]!r}: give role and content")
        content = message["content"]
        if isinstance(content, list):
            parts = [_part(part, f"[{index}].content[{place}]", pictures) for place, part in enumerate(content)]
            messages.append({**message, "content": parts})
        elif isinstance(content, str):
            messages.append(message)
        else:
            raise ValueError(f"[{index}].content is {str(content)[:60]!r}: give text, or a list of parts")
    return messages, pictures


def _part(part: Any, place: str, pictures: list[Any]) -> Mapping[str, str]:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
        brought = [part[key] for key in SOURCES if part.get(key)]
        if brought:
            nested = isinstance(brought[0], dict) and "url" in brought[0]  # OpenAI's {"image_url": {"url": ...}}
            bare = part.get("base64")
            pictures.append(f"data:;base64,{bare}" if bare else brought[0]["url"] if nested else brought[0])
        return {"type": "image"}
    raise ValueError(f"{place} is {str(part)[:60]!r}: give a part of type text, with its text, or of type image")


def place_images(messages: Sequence[Message], token: str) -> list[Message]:
    """The messages with an image part wherever `token` stands in the text of a user's turn."""
    return [
        {**message, "content": _split(message["content"], token)} if message["role"] == "user" else message
        for message in messages
    ]


def _split(content: Any, token: str) -> Any:
    if isinstance(content, str):
        return _split([{"type": "text", "text": content}], token) if token in content else content
    parts: list[Mapping[str, str]] = []
    for part in content:
        for index, piece in enumerate(part["text"].split(token) if part["type"] == "text" else ()):
            parts += [{"type": "image"}] * (index > 0) + ([{"type": "text", "text": piece}] if piece else [])
        if part["type"] != "text":
            parts.append(part)
    return parts


def image_places(messages: Sequence[Message]) -> int:
    """How many image parts there are."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return sum(part["type"] == "image" for part in parts)


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages under a system prompt, where they have none of their own."""
    if not system or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def under_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages with `system` before what their own system prompt says."""
    if not system or messages[0]["role"] != "system":
        return with_system(messages, system)
    own = messages[0]["content"]
    joined: Any = f"{system}\n\n{own}"
    if not isinstance(own, str):
        joined = [{"type": "text", "text": f"{system}\n\n"}, *own]
    return [{**messages[0], "content": joined}, *messages[1:]]
