"""One row, whatever it was read from, as an example."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vold_trainer.data.columns import Columns, without_nulls
from vold_trainer.data.examples import Example, Message
from vold_trainer.data.images import Encoded, Images, Picture, encoded
from vold_trainer.data.messages import image_places, place_images, read_messages, with_system
from vold_trainer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """where: names the row in errors: FILE:LINE, or FILE[ROW] where rows are counted from 0. values: its columns, or
    what is wrong with it. folder: what its image paths are relative to. again: reads the values once more, where that
    is cheaper than to keep them.
    """

    where: str
    values: Mapping[str, Any] | UsageError
    folder: Path
    again: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Reader:
    """How rows become examples. system: put before conversations without a system prompt. image_token: stands for an
    image in a text. image_folder: None for the row's. whole_images: decode every image once, to find what is broken.
    references: whether a row has to have a reference answer.
    """

    columns: Columns
    system: str = ""
    image_token: str = ""
    image_folder: Path | None = None
    whole_images: bool = False
    references: bool = True

    def example(self, row: Row) -> Example:
        """Raises UsageError that names row, field, value and remedy."""
        if isinstance(row.values, UsageError):
            raise row.values
        return _Fields(self, row, row.values).example()


class _Fields:
    """The fields of one row, read one by one."""

    def __init__(self, reader: Reader, row: Row, values: Mapping[str, Any]) -> None:
        self.reader = reader
        self.row = row
        self.columns = tuple(values)
        self.values = reader.columns.fields(values)

    def example(self) -> Example:
        reference = self._reference()
        messages, brought = self._messages()
        images = self._images(brought)
        messages = self._placed(messages, len(images))
        return Example(
            id=str(self.values.get("id", self.row.where)),
            messages=tuple(messages),
            reference=reference,
            images=images or (),
            category=str(self.values.get("category", "")),
            meta=self._meta(),
            twin=self._twin(messages),
        )

    def wrong(self, field: str, remedy: str) -> UsageError:
        return UsageError(f"{self._at(field)} is {_short(self.values.get(field))}: {remedy}")

    def _at(self, field: str) -> str:
        return f"{self.row.where}: {self.reader.columns.describe(field)}"

    def _reference(self) -> str:
        value = self.values.get("reference")
        if value is None and not self.reader.references:
            return ""
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise self.wrong("reference", f"give the reference answer as text or a number{self._other('reference')}")
        return str(value)

    def _other(self, field: str) -> str:
        """What to do where a field is simply called otherwise."""
        if field in self.values:
            return ""
        return f", or name its column with data.columns.{field} (the row has {', '.join(self.columns) or 'none'})"

    def _text(self, field: str) -> str:
        value = self.values.get(field, "")
        if not isinstance(value, str):
            raise self.wrong(field, "give text")
        return value

    def _conversation(self, field: str) -> tuple[list[Message], list[Any]]:
        try:
            return read_messages(self.values[field])
        except ValueError as error:
            name, given = f"field {field!r}", self._at(field)
            # The place belongs to the name: field 'messages[2]'.
            place, _, rest = str(error).partition(" ")
            raise UsageError(f"{given.replace(name, f'field {field + place!r}')} {rest}") from error

    def _messages(self) -> tuple[list[Message], list[Any]]:
        """(the conversation without its system prompt's default, pictures that came with it)."""
        if "messages" in self.values:
            messages, brought = self._conversation("messages")
            if messages[-1]["role"] == "assistant":
                raise UsageError(
                    f"{self._at('messages')} ends with an assistant's turn: a prompt ends with the user's; take the "
                    "answer out"
                )
        else:
            prompt = self.values.get("prompt")
            if isinstance(prompt, list):
                raise self.wrong("prompt", "these are messages: set data.columns.messages to its column")
            if not isinstance(prompt, str) or not prompt:
                raise self.wrong("prompt", f"give the prompt as text, or 'messages'{self._other('prompt')}")
            messages, brought = [{"role": "user", "content": prompt}], []
        system = self._text("system")
        if system and messages[0]["role"] == "system":
            raise self.wrong("system", "the messages have a system prompt of their own: keep one of the two")
        return with_system(messages, system or self.reader.system), brought

    def _images(self, brought: Sequence[Any]) -> Images:
        given = self.values.get("images")
        if brought and given:
            raise self.wrong("images", "the messages bring their images along: keep one of the two")
        count = len(brought or _listed(given))
        return Images(self._picture(index) for index in range(count))

    def _picture(self, index: int) -> Picture:
        folder = self.reader.image_folder or self.row.folder
        try:
            kept = encoded(_image_values(self.values)[index], folder)
        except ValueError as error:
            raise UsageError(f"{self._at('images')}: image {index} is {error}") from error
        again = None
        if self.row.again is not None and isinstance(kept, bytes):
            # Nothing of this row but these two may live on with the picture.
            values, columns = self.row.again, self.reader.columns

            def again() -> Encoded:
                return encoded(_image_values(columns.fields(values()))[index], folder)

        return Picture(kept, self.row.where, again=again, whole=self.reader.whole_images)

    def _placed(self, messages: list[Message], images: int) -> list[Message]:
        """The messages with an image part for each image."""
        if images and not image_places(messages):
            if self.reader.image_token:
                messages = place_images(messages, self.reader.image_token)
            if "messages" not in self.values and not image_places(messages):
                last = messages[-1]
                parts = [{"type": "image"}] * images + [{"type": "text", "text": last["content"]}]
                messages = [*messages[:-1], {**last, "content": parts}]
        places = image_places(messages)
        if places != images:
            raise UsageError(
                f"{self.row.where}: the messages have {places} image places, field 'images' has {images} files: give "
                'one {"type": "image"} part for each'
            )
        return messages

    def _twin(self, messages: Sequence[Message]) -> tuple[Message, ...] | None:
        if "twin" in self.values and "twin_messages" in self.values:
            raise self.wrong("twin", "there is 'twin_messages' too: keep one of the two")
        if "twin" in self.values:
            text = self._text("twin")
            if not text:
                raise self.wrong("twin", "give the question in words alone, or leave it out")
            system = [messages[0]] if messages[0]["role"] == "system" else []
            return (*system, {"role": "user", "content": text})
        if "twin_messages" not in self.values:
            return None
        twin, _ = self._conversation("twin_messages")
        if image_places(twin):
            raise UsageError(f"{self._at('twin_messages')} has an image: a teacher reads text only, say it in words")
        return tuple(with_system(twin, self.reader.system))

    def _meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        for field in ("verifier", "parameters", "teacher", "tags"):
            value = without_nulls(self.values.get(field))
            if value is not None and (value or not self.values[field]):  # all of its keys null: other rows' keys
                meta[field] = value
        tags = meta.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise self.wrong("tags", "give a list of words")
        for field in ("verifier", "teacher"):
            if not isinstance(meta.get(field, ""), str):
                raise self.wrong(field, "give a name")
        if isinstance(meta.get("parameters"), str):
            try:
                meta["parameters"] = json.loads(meta["parameters"])
            except json.JSONDecodeError as error:
                raise self.wrong("parameters", f"not JSON ({error})") from error
        if not isinstance(meta.get("parameters", {}), dict):
            raise self.wrong("parameters", "give an object with the verifier's parameters")
        return meta


def _image_values(values: Mapping[str, Any]) -> list[Any]:
    return _listed(values.get("images")) or read_messages(values["messages"])[1]


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
