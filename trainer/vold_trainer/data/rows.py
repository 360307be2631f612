"""Conversion of a row of any source to an example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vold_trainer.config import DataConfig
from vold_trainer.data.columns import Columns, drop_nulls
from vold_trainer.data.examples import Example, Message
from vold_trainer.data.fields import MAX_SHOWN, FieldError, read_options, read_parameters, reference_text
from vold_trainer.data.images import ImageSource, LazyImage, LazyImages, image_source
from vold_trainer.data.messages import add_system, count_image_parts, insert_image_parts, read_messages
from vold_trainer.data.numbers import number_text
from vold_trainer.data.quoting import quote
from vold_trainer.data.sharegpt import COLUMN as CHAT
from vold_trainer.data.sharegpt import chat_of
from vold_trainer.data.template import PromptTemplate
from vold_trainer.errors import UsageError

IMAGE_TOKEN = str(DataConfig.model_fields["image_token"].default)
"""What stands for an image in a text, unless a config says otherwise."""


@dataclass(frozen=True, slots=True)
class Row:
    """where: names the row in errors: FILE:LINE, or FILE[ROW] with rows counted from 0. values: its columns, or the
    error of an unreadable row. folder: base of relative image paths. reload: reads the values again, if that is cheaper
    than keeping them.
    """

    where: str
    values: Mapping[str, Any] | UsageError
    folder: Path
    reload: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Reader:
    """Converts rows to examples. system: system prompt of conversations without one. image_token: stands for an image
    in a text. image_folder: base of relative image paths; None: the folder of the row. decode_images: decode every
    image once, to find broken ones. references: whether every row must have a reference answer. template: writes the
    prompts.
    """

    columns: Columns
    system: str = ""
    image_token: str = ""
    image_folder: Path | None = None
    decode_images: bool = False
    references: bool = True
    template: PromptTemplate | None = None

    def example(self, row: Row) -> Example:
        """The example of a row. Raises UsageError that names row, field, value and remedy."""
        if isinstance(row.values, UsageError):
            raise row.values
        return check_unicode(_RowFields(self, row, row.values).example())


def check_unicode(example: Example) -> Example:
    """The example. Raises UsageError if a service could not be sent its texts."""
    try:
        example.check_unicode()
    except ValueError as error:
        raise UsageError(f"{example.where}: {error}") from error
    return example


class _RowFields:
    """The fields of one row."""

    def __init__(self, reader: Reader, row: Row, values: Mapping[str, Any]) -> None:
        self.reader = reader
        self.row = row
        self.columns = tuple(values)
        self.values = reader.columns.fields(values)
        chat = chat_of(self.values)
        if chat is not None:
            self.values[CHAT] = chat.turns
            if chat.reference is not None and self.values.setdefault("reference", chat.reference) != chat.reference:
                raise self.error("reference", f"its {CHAT} have a 'ground_truth' too: keep one of the two")
        if reader.template is not None:
            self.values.pop("messages", None)
            try:
                self.values["prompt"] = reader.template.render(values)
            except ValueError as error:
                raise UsageError(f"{row.where}: data.template {error}") from error

    def example(self) -> Example:
        reference = self._reference()
        messages, message_images = self._messages()
        images = self._images(message_images)
        messages = self._with_image_parts(messages, len(images))
        return Example(
            id=self._name("id") or self.row.where,
            messages=tuple(messages),
            reference=reference,
            images=images or (),
            category=self._name("category"),
            meta=self._meta(),
            twin=self._twin(messages),
            where=self.row.where,
        )

    def error(self, field: str, remedy: str) -> UsageError:
        return UsageError(f"{self._at(field)} is {quote(self.values.get(field), MAX_SHOWN)}: {remedy}")

    def _at(self, field: str) -> str:
        return f"{self.row.where}: {self.reader.columns.describe(field)}"

    def _reference(self) -> str:
        value = self.values.get("reference")
        if value is None and not self.reader.references:
            return ""
        try:
            return reference_text(value)
        except FieldError as error:
            raise UsageError(f"{self._at('reference')} {error.problem}{self._column_hint('reference')}") from error

    def _name(self, field: str) -> str:
        """The text of a field that names something; a number is its text."""
        value = self.values.get(field, "")
        return number_text(value) or str(value)

    def _column_hint(self, field: str) -> str:
        """The remedy for a field that is missing because its column has another name."""
        if field in self.values:
            return ""
        return self.reader.columns.hint(field, self.columns)

    def _text(self, field: str) -> str:
        value = self.values.get(field, "")
        if not isinstance(value, str):
            raise self.error(field, "give text")
        return value

    def _conversation(self, field: str) -> tuple[list[Message], list[Any]]:
        try:
            return read_messages(self.values[field])
        except ValueError as error:
            # The position belongs to the name: field 'messages[2]'.
            position, _, rest = str(error).partition(" ")
            name = self._at(field).replace(f"field {field!r}", f"field {field + position!r}")
            raise UsageError(f"{name} {rest}") from error

    def _messages(self) -> tuple[list[Message], list[Any]]:
        """(the conversation, the images inside its messages)."""
        field = self._chat_field()
        if field:
            messages, images = self._conversation(field)
        else:
            prompt = self.values.get("prompt")
            if isinstance(prompt, list):
                raise self.error("prompt", "these are messages: set data.columns.messages to its column")
            if not isinstance(prompt, str) or not prompt:
                raise self.error("prompt", f"give the prompt as text, or 'messages'{self._column_hint('prompt')}")
            messages, images = [{"role": "user", "content": prompt}], []
        system = self._text("system")
        if system and messages[0]["role"] == "system":
            raise self.error("system", "the messages have a system prompt of their own: keep one of the two")
        self._check_last_turn(field, messages[-1]["role"])
        return add_system(messages, system or self.reader.system), images

    def _chat_field(self) -> str:
        """The field that holds the prompt as messages; empty if none does."""
        if "messages" in self.values:
            return "messages"
        return CHAT if CHAT in self.values and "prompt" not in self.values else ""

    def _check_last_turn(self, field: str, role: str) -> None:
        if role in ("user", "tool"):
            return
        turn, remedy = (
            ("an assistant's turn", "take the answer out")
            if role == "assistant"
            else ("the system's turn", "add the question")
        )
        raise UsageError(f"{self._at(field)} ends with {turn}: a prompt ends with the user's; {remedy}")

    def _images(self, message_images: Sequence[Any]) -> LazyImages:
        values = self.values.get("images")
        if message_images and values:
            raise self.error("images", "the messages bring their images along: keep one of the two")
        count = len(message_images or _as_list(values))
        return LazyImages(self._image(index) for index in range(count))

    def _image(self, index: int) -> LazyImage:
        folder = self.reader.image_folder or self.row.folder
        try:
            source = image_source(_image_values(self.values)[index], folder)
        except ValueError as error:
            raise UsageError(f"{self._at('images')}: image {index} is {error}") from error
        reload = None
        if self.row.reload is not None and isinstance(source, bytes):
            # The closure must not hold the row, whose values are in memory.
            read_values, columns = self.row.reload, self.reader.columns

            def reload() -> ImageSource:
                return image_source(_image_values(columns.fields(read_values()))[index], folder)

        return LazyImage(source, self.row.where, reload=reload, decode=self.reader.decode_images)

    def _with_image_parts(self, messages: list[Message], images: int) -> list[Message]:
        """The messages with one image part per image. Raises UsageError if the numbers differ."""
        if images and not count_image_parts(messages):
            if self.reader.image_token:
                messages = insert_image_parts(messages, self.reader.image_token)
            if not self._chat_field() and not count_image_parts(messages):
                last = messages[-1]
                parts = [{"type": "image"}] * images + [{"type": "text", "text": last["content"]}]
                messages = [*messages[:-1], {**last, "content": parts}]
        places = count_image_parts(messages)
        if places != images:
            raise UsageError(
                f"{self.row.where}: the messages have {places} image places, field 'images' has {images} files: give "
                'one {"type": "image"} part for each'
            )
        return messages

    def _twin(self, messages: Sequence[Message]) -> tuple[Message, ...] | None:
        if "twin" in self.values and "twin_messages" in self.values:
            raise self.error("twin", "there is 'twin_messages' too: keep one of the two")
        if "twin" in self.values:
            text = self._text("twin")
            if not text:
                raise self.error("twin", "give the question in words alone, or leave it out")
            system = [messages[0]] if messages[0]["role"] == "system" else []
            return (*system, {"role": "user", "content": text})
        if "twin_messages" not in self.values:
            return None
        twin, _ = self._conversation("twin_messages")
        if count_image_parts(twin):
            raise UsageError(f"{self._at('twin_messages')} has an image: a teacher reads text only, say it in words")
        return tuple(add_system(twin, self.reader.system))

    def _meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        for field in ("verifier", "teacher", "tags"):
            value = drop_nulls(self.values.get(field))
            if value is not None and (
                value or not self.values[field]
            ):  # a mapping with null values only: its keys are those of other rows
                meta[field] = value
        tags = meta.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise self.error("tags", "give a list of words")
        for field in ("verifier", "teacher"):
            if not isinstance(meta.get(field, ""), str):
                raise self.error(field, "give a name")
        for field, read in (("parameters", read_parameters), ("options", read_options)):
            value = drop_nulls(self.values.get(field))
            if value is None or (not value and self.values[field]):  # keys of other rows alone
                continue
            try:
                meta[field] = read(value)
            except FieldError as error:
                raise UsageError(f"{self._at(field)} {error.problem}") from error
        return meta


def _image_values(values: Mapping[str, Any]) -> list[Any]:
    if images := _as_list(values.get("images")):
        return images
    chat = chat_of(values)
    return read_messages(values["messages"] if chat is None else chat.turns)[1]


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]
