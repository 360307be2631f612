"""The HTTP routes: they parse requests, call the teacher, and reply with JSON or server-sent events."""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from vold_service.call import Call
from vold_service.errors import ServiceError, check_name
from vold_service.http import admit_call, cancel_on_disconnect, read_json, sized_response, stream_events

from vold_teacher.metrics import count_request
from vold_teacher.models import LoadedModel
from vold_teacher.openai.chat import ChatReply
from vold_teacher.openai.completions import CompletionsReply
from vold_teacher.openai.errors import OpenAIErrors, error_body
from vold_teacher.openai.fields import parse_request
from vold_teacher.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingRequest,
    TokenizeRequest,
)
from vold_teacher.openai.tokens import detokenize, tokenize, tokenizer_info
from vold_teacher.schemas import ModelOut, ModelsOut, inline_definitions
from vold_teacher.service import Teacher

log = logging.getLogger("vold.teacher.openai")

R = TypeVar("R", bound=BaseModel)

INLINE_JSON_BYTES = 8192
"""A larger body is parsed by another process."""


class _Reply(Protocol):
    async def body(self) -> bytes: ...

    def chunks(self) -> AsyncGenerator[dict[str, Any], None]: ...


def add_openai_routes(app: FastAPI, teacher: Teacher) -> None:
    """Add OpenAI's and vLLM's routes to the app, and the format of their errors."""
    router = APIRouter(tags=["openai"])
    app.state.other_errors = OpenAIErrors(app, router)

    @router.get("/v1/models")
    async def models() -> ModelsOut:
        """The models served here, as OpenAI lists them."""
        return list_models(teacher)

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelOut:
        """A model served here, as OpenAI describes it."""
        return _describe(teacher.models.find(name))

    @router.post("/v1/completions", openapi_extra=_request_body(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Scores and completes prompts, as OpenAI's and vLLM's servers do."""
        call = admit_call(request, teacher.quotas)
        body = await _read(request, call, teacher, CompletionRequest)
        call = _with_request_id(call, body)
        return await _respond(request, "Completions", body, CompletionsReply.prepare(teacher, body, call))

    @router.post("/v1/chat/completions", openapi_extra=_request_body(ChatRequest))
    async def chat(request: Request) -> Response:
        """Completes a conversation, as OpenAI's and vLLM's servers do."""
        call = admit_call(request, teacher.quotas)
        body = await _read(request, call, teacher, ChatRequest)
        call = _with_request_id(call, body)
        return await _respond(request, "ChatCompletions", body, ChatReply.prepare(teacher, body, call))

    @router.post("/tokenize", openapi_extra=_request_body(TokenizeRequest))
    async def tokens_of(request: Request) -> Response:
        """The token ids of a text or a conversation, as in vLLM."""
        call = admit_call(request, teacher.quotas)
        body = await _read(request, call, teacher, TokenizeRequest)
        return _bytes(await cancel_on_disconnect(request, tokenize(teacher, body, call)))

    @router.post("/detokenize", openapi_extra=_request_body(DetokenizeRequest))
    async def text_of(request: Request) -> Response:
        """The text of token ids, as in vLLM."""
        call = admit_call(request, teacher.quotas)
        return _json(await detokenize(teacher, await _read(request, call, teacher, DetokenizeRequest), call))

    @router.get("/tokenizer_info")
    async def info(model: str = "") -> Response:
        """The tokenizer's special tokens and chat template, as in vLLM."""
        return _json(tokenizer_info(teacher, model))

    @router.get("/health")
    async def health() -> Response:
        """200 once the teacher can serve, at the path that vLLM's clients expect."""
        teacher.models.find("")
        return Response()

    app.include_router(router)


def list_models(teacher: Teacher) -> ModelsOut:
    return ModelsOut(data=[_describe(model) for model in teacher.models.loaded.values()])


def _describe(model: LoadedModel) -> ModelOut:
    identity = model.identity
    return ModelOut(
        id=identity.model, max_model_len=model.limits.max_sequence, weights_fingerprint=identity.weights_fingerprint
    )


async def _read(request: Request, call: Call, teacher: Teacher, kind: type[R]) -> R:
    """The request's body, parsed: by another process if that could take long."""
    body = await read_json(request, call)
    if len(body) <= INLINE_JSON_BYTES:
        return parse_request(kind, body)
    return await teacher.processes.run(parse_request, kind, body, tenant=call.tenant)


async def _respond(request: Request, name: str, body: SamplingRequest, reply: Awaitable[_Reply]) -> Response:
    if body.stream:
        return await _stream(request, _chunks(name, reply))
    return _bytes(await cancel_on_disconnect(request, _body(name, reply)))


async def _body(name: str, reply: Awaitable[_Reply]) -> bytes:
    with count_request("http", name):
        return await (await reply).body()


async def _chunks(name: str, reply: Awaitable[_Reply]) -> AsyncGenerator[dict[str, Any], None]:
    with count_request("http", name):
        async with aclosing((await reply).chunks()) as chunks:
            async for chunk in chunks:
                yield chunk


def _json(body: dict[str, Any]) -> Response:
    return _bytes(json.dumps(body, ensure_ascii=False).encode())


def _bytes(body: bytes) -> Response:
    return sized_response([body], "application/json")


async def _stream(request: Request, chunks: AsyncGenerator[dict[str, Any], None]) -> Response:
    """Server-sent events."""

    def write_error(error: ServiceError) -> bytes:
        return _event(error_body(error))

    body = await stream_events(request, chunks, _event, write_error, end=b"data: [DONE]\n\n", log=log)
    return StreamingResponse(body, media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _event(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def _with_request_id(call: Call, body: SamplingRequest) -> Call:
    check_name("request_id", body.request_id)
    return replace(call, request_id=body.request_id or call.request_id)


def _request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The request body for /docs: the route parses it itself, so that its errors have OpenAI's format."""
    schema = inline_definitions(kind.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
