"""vLLM's /tokenize, /detokenize and /tokenizer_info, where evaluators read a served model's tokenizer."""

import asyncio
from typing import Any

from vold_proto.arrays import pack_ids
from vold_service.errors import invalid

from vold_teacher.openai.prompts import read_messages
from vold_teacher.openai.schemas import DetokenizeRequest, TokenizeRequest
from vold_teacher.service import Teacher
from vold_teacher.validation import read_token_ids


async def tokenize(teacher: Teacher, request: TokenizeRequest) -> dict[str, Any]:
    model = teacher.model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "prompt and messages are both there or both absent: send one of them")
    if request.messages is not None:
        ids = (await asyncio.to_thread(read_messages, request.messages, model)).ids
    else:
        text = request.prompt or ""
        ids = await asyncio.to_thread(model.tokenizer.encode, text, special=request.add_special_tokens)
    return {
        "count": len(ids),
        "max_model_len": model.limits.max_sequence,
        "tokens": ids.tolist(),
        "token_strs": [model.tokenizer.token(index) for index in ids.tolist()] if request.return_token_strs else None,
    }


async def detokenize(teacher: Teacher, request: DetokenizeRequest) -> dict[str, Any]:
    model = teacher.model(request.model)
    try:
        packed = pack_ids(request.tokens)
    except ValueError as error:
        raise invalid("tokens", f"tokens: {error}") from error
    ids = read_token_ids(packed, "tokens", model.limits)
    return {"prompt": await asyncio.to_thread(model.tokenizer.decode, ids, special=True)}


def tokenizer_info(teacher: Teacher, name: str) -> dict[str, Any]:
    tokenizer = teacher.model(name).tokenizer
    special = {
        f"{kind}_token": tokenizer.token(tokenizer.special_ids[kind]) if kind in tokenizer.special_ids else None
        for kind in ("bos", "eos", "pad", "unk")
    }
    return {**special, "chat_template": tokenizer.chat_template or None}
