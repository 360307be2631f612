"""What a request asks about: its prompts as ids, with every limit of theirs checked before anything is computed."""

import asyncio
from dataclasses import dataclass
from typing import Any

from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import invalid

from vold_teacher.openai.schemas import Message
from vold_teacher.service import Loaded
from vold_teacher.types import Ids
from vold_teacher.validation import token_ids

FORMS = "send a text, a list of texts, a list of token ids, or a list of lists of token ids"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """ids: int32 [P], at least one. text: what was sent, where it was text."""

    ids: Ids
    text: str | None = None


async def read_prompts(prompt: Any, model: Loaded, *, special: bool, room: int) -> list[Prompt]:
    """Every form that `prompt` may have. special: a text gets the tokenizer's special tokens around it. room: tokens
    that must fit after each.

    Raises INVALID_ARGUMENT that names the prompt and the position.
    """
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise invalid("prompt", f"prompt is {'empty' if prompt == [] else 'of no form that is served'}: {FORMS}")
    # Not on the event loop: a long text takes its time.
    return await asyncio.to_thread(
        lambda: [_read(item, index, model, special, room) for index, item in enumerate(prompt)]
    )


def _read(item: Any, index: int, model: Loaded, special: bool, room: int) -> Prompt:
    field = f"prompt[{index}]"
    if isinstance(item, str):
        read = Prompt(model.tokenizer.encode(item, special=special), item)
    elif isinstance(item, list) and all(type(token) is int for token in item):
        try:
            packed = pack_ids(item)
        except ValueError as error:
            raise invalid(field, f"{field}: {error}") from error
        read = Prompt(token_ids(packed, field, model.limits))
    else:
        raise invalid(field, f"{field} is neither a text nor a list of token ids: {FORMS}")
    check_length(read.ids, field, model, room)
    return read


def read_messages(messages: list[Message], model: Loaded) -> Prompt:
    """A conversation, rendered with the teacher's chat template."""
    for index, message in enumerate(messages):
        if not isinstance(message.content, str):
            for place, part in enumerate(message.content):
                if part.type != "text":
                    raise invalid(
                        "messages",
                        f"messages[{index}].content[{place}] is of type {part.type!r}: this teacher reads text alone",
                    )
    wire = [pb.ChatMessage(role=message.role, content=message.text) for message in messages]
    prompt = Prompt(model.tokenizer.render(wire, "messages"))
    check_length(prompt.ids, "messages", model, 1)
    return prompt


def check_length(ids: Ids, field: str, model: Loaded, room: int) -> None:
    if not len(ids):
        raise invalid(field, f"{field} is empty: send at least one token, such as BOS")
    most = model.limits.max_sequence
    if len(ids) + room > most:
        full = " and needs one more for a completion" if room else ""
        raise invalid(field, f"{field} has {len(ids)} tokens{full}: the teacher takes at most {most}; shorten it")
