"""Reads the prompts of a request as ids, and checks their limits before anything is computed."""

from dataclasses import dataclass
from typing import Any

from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import invalid, shown
from vold_service.turns import Turn

from vold_teacher.models import LoadedModel
from vold_teacher.openai.schemas import Message
from vold_teacher.texts import estimated_tokens
from vold_teacher.types import Ids
from vold_teacher.validation import check_count, read_token_ids


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """ids: int32 [P], at least one. text: the prompt as sent, if it was sent as text."""

    ids: Ids
    text: str | None = None


async def read_prompts(
    items: list[str | bytes], model: LoadedModel, *, special: bool, room: int, completion: int, call: Call
) -> list[Prompt]:
    """The prompts. items: texts, and packed ids. special: add the tokenizer's special tokens to a text. room: tokens
    that must fit after each prompt. completion: tokens of the completions of each prompt.

    Raises INVALID_ARGUMENT that names the prompt and the position, or RESOURCE_EXHAUSTED if the call's tenant has no
    tokens left for them.
    """
    check_count("prompt", len(items), model.limits)
    max_sequence = model.limits.max_sequence
    tokens = text_tokens = 0
    for index, item in enumerate(items):
        if isinstance(item, str):
            model.texts.check([item], f"prompt[{index}]", max_sequence)
            text_tokens += min(estimated_tokens([item]), max_sequence)
        else:
            check_room(len(item) // 4, f"prompt[{index}]", model, room)
            tokens += len(item) // 4
    if call.place is not None:  # before any text is tokenized: a tenant without tokens left costs nothing
        call.place.prepay(text_tokens + tokens + len(items) * completion)
        call.place.spend(text_tokens)
    texts = [item for item in items if isinstance(item, str)]
    encoded = iter(await model.texts.encode(texts, special=special, tenant=call.tenant))
    prompts, turn = [], Turn()
    for index, item in enumerate(items):
        field = f"prompt[{index}]"
        if isinstance(item, str):
            prompt = Prompt(next(encoded), item)
        else:
            prompt = Prompt(read_token_ids(item, field, model.limits))
        check_length(prompt.ids, field, model, room)
        prompts.append(prompt)
        await turn.pause()
    return prompts


async def read_messages(
    messages: list[Message],
    model: LoadedModel,
    call: Call,
    *,
    completion: int = 0,
    variables: dict[str, Any] | None = None,
) -> Prompt:
    """A conversation, rendered with the teacher's chat template. completion: as for `read_prompts`. variables: of the
    template.
    """
    model.tokenizer.check_variables(variables or {}, "chat_template_kwargs")
    for index, message in enumerate(messages):
        if not isinstance(message.content, str):
            for position, part in enumerate(message.content):
                if part.type != "text":
                    raise invalid(
                        "messages",
                        f"messages[{index}].content[{position}] is of type {shown(part.type)}: "
                        "this teacher reads text alone",
                    )
    wire = [pb.ChatMessage(role=message.role, content=message.text) for message in messages]
    texts = [message.content for message in wire]
    model.texts.check(texts, "messages", model.limits.max_sequence)
    if call.place is not None:
        tokens = min(estimated_tokens(texts), model.limits.max_sequence)
        call.place.prepay(tokens + completion)
        call.place.spend(tokens)
    prompt = Prompt(await model.texts.render(wire, "messages", tenant=call.tenant, variables=variables))
    check_length(prompt.ids, "messages", model, 1)
    return prompt


def check_length(ids: Ids, field: str, model: LoadedModel, room: int) -> None:
    if not len(ids):
        raise invalid(field, f"{field} is empty: send at least one token, such as BOS")
    check_room(len(ids), field, model, room)


def check_room(count: int, field: str, model: LoadedModel, room: int) -> None:
    """Raise INVALID_ARGUMENT if a prompt of `count` tokens does not leave `room` more."""
    max_sequence = model.limits.max_sequence
    if count + room > max_sequence:
        room_text = " and needs one more for a completion" if room else ""
        raise invalid(
            field, f"{field} has {count} tokens{room_text}: the teacher takes at most {max_sequence}; shorten it"
        )
