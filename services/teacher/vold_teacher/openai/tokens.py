"""vLLM's /tokenize, /detokenize and /tokenizer_info, where evaluators read a served model's tokenizer."""

import json
from typing import Any

from vold_proto.arrays import pack_ids
from vold_service.call import Call
from vold_service.errors import invalid

from vold_teacher.openai.prompts import check_room, read_messages
from vold_teacher.openai.schemas import DetokenizeRequest, TokenizeRequest
from vold_teacher.service import Teacher
from vold_teacher.texts import estimated_tokens
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import Ids
from vold_teacher.validation import read_token_ids

TOKEN_BYTES = 16
"""Of an id, and perhaps its text, as JSON."""


async def tokenize(teacher: Teacher, request: TokenizeRequest, call: Call) -> bytes:
    """The reply of /tokenize, as JSON."""
    model = teacher.models.find(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "prompt and messages are both there or both absent: send one of them")
    if request.messages is not None:
        ids = (await read_messages(request.messages, model, call)).ids
    else:
        text = request.prompt or ""
        model.texts.check([text], "prompt", model.limits.max_sequence)
        _spend(call, estimated_tokens([text]))
        (ids,) = await model.texts.encode([text], special=request.add_special_tokens, tenant=call.tenant)
    return await model.texts.run(
        _write_tokens,
        ids,
        model.limits.max_sequence,
        request.return_token_strs,
        size=len(ids) * TOKEN_BYTES,
        tenant=call.tenant,
    )


def _write_tokens(tokenizer: Tokenizer, ids: Ids, max_sequence: int, with_texts: bool) -> bytes:
    body = {
        "count": len(ids),
        "max_model_len": max_sequence,
        "tokens": ids.tolist(),
        "token_strs": [tokenizer.token(index) for index in ids.tolist()] if with_texts else None,
    }
    return json.dumps(body, ensure_ascii=False).encode()


async def detokenize(teacher: Teacher, request: DetokenizeRequest, call: Call) -> dict[str, Any]:
    model = teacher.models.find(request.model)
    check_room(len(request.tokens), "tokens", model, 0)
    _spend(call, len(request.tokens))
    try:
        packed = pack_ids(request.tokens)
    except ValueError as error:
        raise invalid("tokens", f"tokens: {error}") from error
    ids = read_token_ids(packed, "tokens", model.limits)
    return {"prompt": model.tokenizer.decode(ids, special=True)}


def _spend(call: Call, tokens: int) -> None:
    """Take a text's tokens from the quota of the call's tenant. Raises RESOURCE_EXHAUSTED if it has too few."""
    if call.place is not None:
        call.place.prepay(tokens)
        call.place.spend(tokens)


def tokenizer_info(teacher: Teacher, name: str) -> dict[str, Any]:
    tokenizer = teacher.models.find(name).tokenizer
    special = {
        f"{kind}_token": tokenizer.token(tokenizer.special_ids[kind]) if kind in tokenizer.special_ids else None
        for kind in ("bos", "eos", "pad", "unk")
    }
    return {**special, "chat_template": tokenizer.chat_template or None}
