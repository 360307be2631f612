"""Reads requests: which fields of OpenAI's and vLLM's APIs are served, which are ignored, and which are refused.

A field that would change the reply and is not served is refused, with its name and the remedy: without the field, the
reply would not be the one that the caller requested.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from vold_service.errors import MAX_NAME, ServiceError, describe_invalid, invalid, shown

R = TypeVar("R", bound=BaseModel)

# Fields that do not change the reply.
IGNORED = frozenset(
    {
        "cache_salt",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
    }
)

# Fields that are not served, with the values that request nothing. Many clients always send them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


def parse_request(kind: type[R], body: bytes | bytearray) -> R:
    """Parse and validate a request. Raises INVALID_ARGUMENT with the first field that is unknown or invalid."""
    try:
        data = from_json(body)  # as on the service's own routes: no lone surrogates, no endless nesting
    except ValueError as error:
        raise invalid("body", f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise invalid("body", f"the body is a {type(data).__name__}: send a JSON object")
    fields = {}
    for name, value in data.items():
        if value is None or name in IGNORED:
            continue
        if name in kind.model_fields:
            fields[name] = value
        elif name not in NEUTRAL:
            name = name[:MAX_NAME]
            raise invalid(name, f"{name} is not a field of this route: leave it out; docs/openai.md lists what is")
        elif value not in NEUTRAL[name]:
            raise _refusal(name, value)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise describe_invalid(error.errors(include_url=False)) from error


def _refusal(name: str, value: Any) -> ServiceError:
    neutral = "".join(f" or send {json.dumps(allowed)}" for allowed in NEUTRAL[name])
    return invalid(name, f"{name} is {shown(value)}, which this server does not do: leave it out{neutral}")
