"""Reads the prompts of a request as ids, and checks their limits before anything is computed."""

import asyncio
from dataclasses import dataclass
from typing import Any

from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import invalid

from vold_teacher.openai.schemas import Message
from vold_teacher.service import LoadedModel
from vold_teacher.types import Ids
from vold_teacher.validation import read_token_ids

FORMS = "send a text, a list of texts, a list of token ids, or a list of lists of token ids"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """ids: int32 [P], at least one. text: the prompt as sent, if it was sent as text."""

    ids: Ids
    text: str | None = None


async def read_prompts(prompt: Any, model: LoadedModel, *, special: bool, room: int) -> list[Prompt]:
    """The prompts, from every form that the field `prompt` may have. special: add the tokenizer's special tokens to a
    text. room: tokens that must fit after each prompt.

    Raises INVALID_ARGUMENT that names the prompt and the position.
    """
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise invalid("prompt", f"prompt is {'empty' if prompt == [] else 'of no form that is served'}: {FORMS}")
    # Not on the event loop, which tokenizing a long text would block.
    return await asyncio.to_thread(
        lambda: [_read(item, index, model, special, room) for index, item in enumerate(prompt)]
    )


def _read(item: Any, index: int, model: LoadedModel, special: bool, room: int) -> Prompt:
    field = f"prompt[{index}]"
    if isinstance(item, str):
        result = Prompt(model.tokenizer.encode(item, special=special), item)
    elif isinstance(item, list) and all(type(token) is int for token in item):
        try:
            packed = pack_ids(item)
        except ValueError as error:
            raise invalid(field, f"{field}: {error}") from error
        result = Prompt(read_token_ids(packed, field, model.limits))
    else:
        raise invalid(field, f"{field} is neither a text nor a list of token ids: {FORMS}")
    check_length(result.ids, field, model, room)
    return result


def read_messages(messages: list[Message], model: LoadedModel) -> Prompt:
    """A conversation, rendered with the teacher's chat template."""
    for index, message in enumerate(messages):
        if not isinstance(message.content, str):
            for position, part in enumerate(message.content):
                if part.type != "text":
                    raise invalid(
                        "messages",
                        f"messages[{index}].content[{position}] is of type {part.type!r}: "
                        "this teacher reads text alone",
                    )
    wire = [pb.ChatMessage(role=message.role, content=message.text) for message in messages]
    prompt = Prompt(model.tokenizer.render(wire, "messages"))
    check_length(prompt.ids, "messages", model, 1)
    return prompt


def check_length(ids: Ids, field: str, model: LoadedModel, room: int) -> None:
    if not len(ids):
        raise invalid(field, f"{field} is empty: send at least one token, such as BOS")
    max_sequence = model.limits.max_sequence
    if len(ids) + room > max_sequence:
        room_text = " and needs one more for a completion" if room else ""
        raise invalid(
            field, f"{field} has {len(ids)} tokens{room_text}: the teacher takes at most {max_sequence}; shorten it"
        )
