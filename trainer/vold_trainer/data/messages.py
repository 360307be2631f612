"""Chat messages of a row, converted for chat templates: content is a string, or parts of text and image."""

from collections.abc import Mapping, Sequence
from typing import Any

from vold_trainer.data.columns import drop_nulls
from vold_trainer.data.examples import Message
from vold_trainer.data.parsing import parse_json, reason
from vold_trainer.data.quoting import quote

ROLES = ("system", "user", "assistant", "tool")
SYNONYMS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
"""Other names of roles, in small letters, in data sets of chats."""

IMAGE_KEYS = ("image", "path", "url", "bytes", "base64", "image_url")
"""The keys under which an image part may hold its image."""


def read_messages(value: Any) -> tuple[list[Message], list[Any]]:
    """(messages whose image parts hold no images, the images of these parts in order).

    value: a list of {"role", "content"}, or the same as JSON text. Raises ValueError whose text begins with the
    position of the error in the list ("[2].content is ..."), or with " is" if the whole value is wrong.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise ValueError(f" is text, and not JSON ({reason(error)}): give a list of role and content") from error
    if not isinstance(value, list) or not value:
        raise ValueError(f" is {quote(value)}: give a list of role and content")
    messages: list[Message] = []
    images: list[Any] = []
    for index, message in enumerate(value):
        message = drop_nulls(message)
        if isinstance(message, dict) and not message.keys() & {"role", "content"}:  # ShareGPT's names
            message = {{"from": "role", "value": "content"}.get(key, key): value for key, value in message.items()}
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"[{index}] is {quote(message)}: give role and content")
        message = {**message, "role": _role(message["role"], f"[{index}]")}
        content = message["content"]
        if isinstance(content, list):
            parts = [_part(part, f"[{index}].content[{place}]", images) for place, part in enumerate(content)]
            messages.append({**message, "content": parts})
        elif isinstance(content, str):
            messages.append(message)
        else:
            raise ValueError(f"[{index}].content is {quote(content)}: give text, or a list of parts")
    return messages, images


def _role(role: str, position: str) -> str:
    name = role.strip().lower()
    name = SYNONYMS.get(name, name)
    if name not in ROLES:
        known = ", ".join((*ROLES, *SYNONYMS))
        raise ValueError(f"{position}.role is {quote(role)}: roles are {known}")
    return name


def _part(part: Any, position: str, images: list[Any]) -> Mapping[str, str]:
    _check_keys(part, position)
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
        values = [part[key] for key in IMAGE_KEYS if part.get(key)]
        if values:
            nested = isinstance(values[0], dict) and "url" in values[0]  # OpenAI's {"image_url": {"url": ...}}
            base64 = part.get("base64")
            images.append(f"data:;base64,{base64}" if base64 else values[0]["url"] if nested else values[0])
        return {"type": "image"}
    raise ValueError(f"{position} is {quote(part)}: give a part of type text, with its text, or of type image")


def _check_keys(part: Any, position: str) -> None:
    """Raise ValueError if a part has a key that is not read."""
    if not isinstance(part, dict):
        return
    keys = {"text": ("type", "text"), "image": ("type", *IMAGE_KEYS), "image_url": ("type", *IMAGE_KEYS)}
    for key in part if part.get("type") in keys else ():
        if key not in keys[part["type"]]:
            raise ValueError(f"{position} has {key!r}, which is not read: take it out")
    nested = part.get("image_url")
    if isinstance(nested, dict) and (unread := nested.keys() - {"url"}) and nested.get("detail", "auto") != "auto":
        raise ValueError(f"{position}.image_url has {sorted(unread)[0]!r}, which is not read: take it out")


def insert_image_parts(messages: Sequence[Message], token: str) -> list[Message]:
    """The messages with `token` in the text of user turns replaced by image parts."""
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


def count_image_parts(messages: Sequence[Message]) -> int:
    """The number of image parts."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return sum(part["type"] == "image" for part in parts)


def add_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages with the system prompt `system`, unless they have a system prompt."""
    if not system or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def prepend_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages with `system` before the text of their system prompt, or as system prompt if they have none."""
    if not system or messages[0]["role"] != "system":
        return add_system(messages, system)
    own = messages[0]["content"]
    joined: Any = f"{system}\n\n{own}"
    if not isinstance(own, str):
        joined = [{"type": "text", "text": f"{system}\n\n"}, *own]
    return [{**messages[0], "content": joined}, *messages[1:]]
