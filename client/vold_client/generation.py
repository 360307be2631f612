"""Converts requests to generate to messages, and the events of their replies to completions."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from vold_proto.arrays import unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb

from vold_client.errors import Internal, InvalidArgument, from_status
from vold_client.packing import pack_array, unpack_identity
from vold_client.types import Generation, Ids

Messages = Sequence[Mapping[str, str]]
"""Chat messages: [{"role": "user", "content": "..."}, ...]."""


def pack_sampling(
    n: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop_ids: Sequence[int],
    min_p: float,
    stop: Sequence[str],
) -> pb.GenerateOptions:
    """The options of a request. Raises InvalidArgument for a value that the message cannot hold."""
    try:
        return pb.GenerateOptions(
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop_ids=[int(token) for token in stop_ids],
            min_p=min_p or None,
            stop=[stop] if isinstance(stop, str) else stop,
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"a sampling option is out of range: {error}", field="options") from None


def pack_variables(options: pb.GenerateOptions, variables: Mapping[str, Any]) -> None:
    """Put variables of the chat template into `options`. Raises InvalidArgument for a value that JSON has not."""
    if not variables:
        return
    try:
        options.chat_template_kwargs.update(dict(variables))
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgument(
            f"chat_template_kwargs holds a value that JSON has not: {error}", field="chat_template_kwargs"
        ) from None


def pack_prompt(prompt: Ids | Messages, index: int, seed: int | None) -> pb.GeneratePrompt:
    """The message for a prompt, whose id is its index. Raises InvalidArgument that names the prompt or its seed."""
    if seed is not None and not 0 <= seed < 2**64:
        raise InvalidArgument(f"seeds[{index}] is {seed}: give a number from 0 to 2^64 - 1", field=f"seeds[{index}]")
    if len(prompt) and isinstance(prompt[0], Mapping):
        try:
            messages = [pb.ChatMessage(**cast(Mapping[str, str], message)) for message in prompt]
        except (ValueError, TypeError) as error:
            raise InvalidArgument(
                f"prompts[{index}]: a message has a role and a content, both text: {error}", field=f"prompts[{index}]"
            ) from None
        return pb.GeneratePrompt(id=str(index), messages=messages, seed=seed)
    return pb.GeneratePrompt(id=str(index), ids=pack_array(cast(Ids, prompt), f"prompts[{index}]"), seed=seed)


def unpack_generation(event: pb.GenerateEvent, url: str) -> Generation:
    """The completion of an event, or the error of its prompt. Raises Internal if no such prompt was sent."""
    if not event.id.isdecimal():
        raise Internal(f"a completion came back for the prompt {event.id!r}, which was not sent", url=url)
    return Generation(
        prompt=int(event.id),
        index=event.index,
        ids=unpack_ids(event.ids),
        logprobs=unpack_floats(event.logprobs) if event.logprobs else np.empty(0, np.float32),
        text=event.text,
        finish_reason=event.finish_reason,
        prompt_ids=unpack_ids(event.prompt_ids),
        identity=unpack_identity(event.identity),
        error=from_status(event.status, url),
    )
