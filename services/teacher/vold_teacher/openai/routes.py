"""The routes: they read, call, and write JSON or server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from vold_service.call import Call
from vold_service.errors import ServiceError, internal
from vold_service.http import call_of, until_gone

from vold_teacher.metrics import counted
from vold_teacher.openai.chat import Chat
from vold_teacher.openai.completions import Completions
from vold_teacher.openai.errors import error_body, error_response
from vold_teacher.openai.fields import read
from vold_teacher.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingRequest,
    TokenizeRequest,
)
from vold_teacher.openai.tokens import detokenize, tokenize, tokenizer_info
from vold_teacher.schemas import inlined
from vold_teacher.service import Teacher

log = logging.getLogger("vold.teacher.openai")


class _Answer(Protocol):
    async def body(self) -> dict[str, Any]: ...

    def chunks(self) -> AsyncGenerator[dict[str, Any], None]: ...


class _Route(APIRoute):
    """Answers errors in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ServiceError as error:
                return error_response(error)

        return answer


def add_openai_routes(app: FastAPI, teacher: Teacher) -> None:
    """Put OpenAI's and vLLM's routes on the app."""
    router = APIRouter(route_class=_Route, tags=["openai"])

    @router.post("/v1/completions", openapi_extra=_request_body(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Scores and completes prompts, as OpenAI's and vLLM's servers do."""
        asked = read(CompletionRequest, await request.body())
        call = _named(call_of(request), asked)
        return await _respond(request, "Completions", asked, Completions.read(teacher, asked, call))

    @router.post("/v1/chat/completions", openapi_extra=_request_body(ChatRequest))
    async def chat(request: Request) -> Response:
        """Completes a conversation, as OpenAI's and vLLM's servers do."""
        asked = read(ChatRequest, await request.body())
        call = _named(call_of(request), asked)
        return await _respond(request, "ChatCompletions", asked, Chat.read(teacher, asked, call))

    @router.post("/tokenize", openapi_extra=_request_body(TokenizeRequest))
    async def tokens_of(request: Request) -> Response:
        """A text's or a conversation's ids, as vLLM gives them."""
        return _json(await tokenize(teacher, read(TokenizeRequest, await request.body())))

    @router.post("/detokenize", openapi_extra=_request_body(DetokenizeRequest))
    async def text_of(request: Request) -> Response:
        """The text of ids, as vLLM gives it."""
        return _json(await detokenize(teacher, read(DetokenizeRequest, await request.body())))

    @router.get("/tokenizer_info")
    async def info(model: str = "") -> Response:
        """The tokenizer's special tokens and chat template, as vLLM gives them."""
        return _json(tokenizer_info(teacher, model))

    @router.get("/health")
    async def health() -> Response:
        """Whether the teacher answers, where vLLM's clients look for it."""
        teacher.model("")
        return Response()

    app.include_router(router)


async def _respond(request: Request, name: str, asked: SamplingRequest, reading: Awaitable[_Answer]) -> Response:
    if asked.stream:
        return await _stream(request, _chunks(name, reading))
    return Response(await until_gone(request, _body(name, reading)), media_type="application/json")


async def _body(name: str, reading: Awaitable[_Answer]) -> bytes:
    with counted("http", name):
        return await asyncio.to_thread(_encoded, await (await reading).body())


async def _chunks(name: str, reading: Awaitable[_Answer]) -> AsyncGenerator[dict[str, Any], None]:
    with counted("http", name):
        async with aclosing((await reading).chunks()) as chunks:
            async for chunk in chunks:
                yield chunk


def _encoded(body: dict[str, Any]) -> bytes:
    """As JSON, choice by choice: the encoder lets no other thread run, and all choices together may take it seconds.
    Not on the event loop, for the same reason.
    """
    choices = ",".join(json.dumps(choice, ensure_ascii=False) for choice in body["choices"])
    rest = json.dumps({name: value for name, value in body.items() if name != "choices"}, ensure_ascii=False)
    return f'{rest[:-1]},"choices":[{choices}]}}'.encode()


def _json(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body, ensure_ascii=False).encode(), media_type="application/json")


async def _next(chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
    return await anext(chunks, None)


async def _stream(request: Request, chunks: AsyncGenerator[dict[str, Any], None]) -> Response:
    """Server-sent events. What fails before the first has a status of its own; later it is an event."""
    first = await until_gone(request, _next(chunks))

    async def events() -> AsyncIterator[bytes]:
        async with aclosing(chunks):
            chunk = first
            try:
                while chunk is not None:
                    yield _event(chunk)
                    chunk = await until_gone(request, _next(chunks))
            except ServiceError as error:
                yield _event(error_body(error))
            except Exception as error:
                log.exception("a stream failed")
                yield _event(error_body(internal(error)))
            yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _event(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def _named(call: Call, asked: SamplingRequest) -> Call:
    return replace(call, request_id=asked.request_id or call.request_id)


def _request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The body for /docs: the route reads it itself, so that its errors are OpenAI's."""
    schema = inlined(kind.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
