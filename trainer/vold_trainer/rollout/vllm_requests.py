"""What a vLLM server is asked for the rows of a prompt, and its replies as rollouts."""

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vold_trainer.data import Example
from vold_trainer.errors import RunError
from vold_trainer.rollout.base import Rollout, Sampling
from vold_trainer.rollout.vllm_server import Reply
from vold_trainer.student.models import Student


def request_body(student: Student, example: Example, ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    """The request body of a prompt's rows, without seed and model. All sampling parameters are given: vLLM takes
    the default of a missing one from the model's generation_config.json.
    """
    request = {
        "max_tokens": sampling.max_tokens,
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [*student.eos_ids, *sampling.stop.ids],
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if sampling.stop.texts:
        request |= {"stop": list(sampling.stop.texts), "include_stop_str_in_output": True}
    if student.banned_ids:
        request["logit_bias"] = {str(token): -100.0 for token in student.banned_ids}
    if not example.images:
        return {**request, "prompt": list(ids), "logprobs": sampling.candidates}
    messages = messages_with_images(example)
    if student.template_variables:
        request["chat_template_kwargs"] = student.template_variables
    return {**request, "messages": messages, "logprobs": True, "top_logprobs": sampling.candidates}


def read_reply(
    student: Student,
    row: int,
    example: Example,
    prompt: tuple[int, ...],
    reply: Reply,
    sampling: Sampling,
    has_logprobs: bool,
) -> Rollout:
    """The rollout of a row. prompt: its ids as the student has them. has_logprobs: whether the reply's are of use.

    Raises RunError if the server read another prompt, or gave too few candidates.
    """
    if reply.prompt_ids != prompt:
        start = first_difference(prompt, reply.prompt_ids)
        raise RunError(
            f"example {example.id!r}: vLLM read a prompt of {len(reply.prompt_ids)} tokens, the student's "
            f"processor makes {len(prompt)} of it (from token {start} on they differ). Serve the student's own "
            "folder, with its chat template and processor"
        )
    candidates = None
    if sampling.candidates:
        if any(len(ids) < sampling.candidates for ids in reply.top_ids):
            raise RunError(
                f"vLLM gave fewer than the {sampling.candidates} most likely ids of a position that were requested"
            )
        candidates = np.array([ids[: sampling.candidates] for ids in reply.top_ids], np.int64)
    return Rollout(
        row,
        example,
        prompt,
        reply.ids,
        student.tokenizer.decode(reply.ids, skip_special_tokens=True),
        reply.truncated,
        logprobs=np.array(reply.logprobs, np.float32) if has_logprobs else None,
        candidates=candidates,
    )


def row_seed(seed: int, row: int) -> int:
    """The seed of a row's request, below 2^63: a hash, so that rows of different steps have different seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row}".encode()).digest()[:8], "big") >> 1


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first index at which two different lists differ."""
    differing = (index for index, (left, right) in enumerate(zip(a, b, strict=False)) if left != right)
    return next(differing, min(len(a), len(b)))


def messages_with_images(example: Example) -> list[dict[str, Any]]:
    """The messages in the format of OpenAI's chat API, with the images as lossless PNG."""
    images = iter(example.images)

    def part(item: Any) -> dict[str, Any]:
        if item["type"] != "image":
            return dict(item)
        return {"type": "image_url", "image_url": {"url": _data_url(next(images))}}

    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part(item) for item in message["content"]],
        }
        for message in example.messages
    ]


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
