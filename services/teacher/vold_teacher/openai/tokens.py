"""vLLM's /tokenize, /detokenize and /tokenizer_info: evaluators read a served model's tokenizer there."""

import asyncio
from typing import Any

from vold_proto.arrays import pack_ids
from vold_service.errors import invalid

from vold_teacher.openai.prompts import read_messages
from vold_teacher.openai.schemas import DetokenizeRequest, TokenizeRequest
from vold_teacher.service import Teacher
from vold_teacher.validation import token_ids


async def tokenize(teacher: Teacher, asked: TokenizeRequest) -> dict[str, Any]:
    model = teacher.model(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise invalid("prompt", "prompt and messages are both there or both absent: send one of them")
    if asked.messages is not None:
        ids = (await asyncio.to_thread(read_messages, asked.messages, model)).ids
    else:
        text = asked.prompt or ""
        ids = await asyncio.to_thread(model.tokenizer.encode, text, special=asked.add_special_tokens)
    return {
        "count": len(ids),
        "max_model_len": model.limits.max_sequence,
        "tokens": ids.tolist(),
        "token_strs": [model.tokenizer.token(index) for index in ids.tolist()] if asked.return_token_strs else None,
    }


async def detokenize(teacher: Teacher, asked: DetokenizeRequest) -> dict[str, Any]:
    model = teacher.model(asked.model)
    try:
        packed = pack_ids(asked.tokens)
    except ValueError as error:
        raise invalid("tokens", f"tokens: {error}") from error
    ids = token_ids(packed, "tokens", model.limits)
    return {"prompt": await asyncio.to_thread(model.tokenizer.decode, ids, special=True)}


def tokenizer_info(teacher: Teacher, name: str) -> dict[str, Any]:
    tokenizer = teacher.model(name).tokenizer
    special = {
        f"{kind}_token": tokenizer.token(tokenizer.special_ids[kind]) if kind in tokenizer.special_ids else None
        for kind in ("bos", "eos", "pad", "unk")
    }
    return {**special, "chat_template": tokenizer.chat_template or None}
