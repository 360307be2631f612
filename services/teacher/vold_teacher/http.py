"""The HTTP face: translates, and nothing else. Each route speaks JSON, or the wire's own messages as protobuf."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from io import BytesIO
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.proto import serialize_length_prefixed
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError, internal
from vold_service.http import PROTOBUF, call_of, read_protobuf, speaks_protobuf, until_gone

from vold_teacher.metrics import counted
from vold_teacher.openai.routes import add_openai_routes
from vold_teacher.schemas import (
    GenerateEventOut,
    GenerateIn,
    GenerateOut,
    LoadIn,
    ModelOut,
    ModelsOut,
    ScoreIn,
    ScoreOut,
    UnloadIn,
    UsageOut,
    inlined,
)
from vold_teacher.service import Teacher

NDJSON = "application/x-ndjson"

log = logging.getLogger("vold.teacher.http")
S = TypeVar("S", bound=BaseModel)


def add_routes(app: FastAPI, teacher: Teacher) -> None:
    """Put the teacher's routes on the app."""
    add_openai_routes(app, teacher)

    @app.get("/v1/info", tags=["teacher"])
    async def info(request: Request, model: str = "") -> Response:
        """Who answers, and what it can do."""
        with counted("http", "GetInfo"):
            reply = teacher.info(pb.GetInfoRequest(model=model))
            return _protobuf(reply) if speaks_protobuf(request) else JSONResponse(_as_dict(reply))

    @app.get("/v1/tokenizer", tags=["teacher"])
    async def tokenizer(request: Request, model: str = "") -> Response:
        """The tokenizer file; in JSON as text, under tokenizer_json."""
        with counted("http", "GetTokenizer"):
            reply = teacher.tokenizer(pb.GetTokenizerRequest(model=model))
            if speaks_protobuf(request):
                return _protobuf(reply)
            return JSONResponse({**_as_dict(reply), "tokenizer_json": reply.tokenizer_json.decode()})

    @app.get("/v1/models", tags=["teacher"])
    async def models() -> ModelsOut:
        """The models served here, as OpenAI lists them."""
        return ModelsOut(
            data=[
                ModelOut(
                    id=name,
                    max_model_len=model.limits.max_sequence,
                    weights_fingerprint=model.identity.weights_fingerprint,
                )
                for name, model in teacher.models.items()
            ]
        )

    @app.post("/v1/models/load", tags=["admin"])
    async def load(request: Request, wanted: LoadIn) -> Response:
        """Serve another model out of the server's --models-dir. For administrators."""
        await teacher.load(wanted.name, wanted.path, call_of(request))
        return JSONResponse(_as_dict(teacher.info(pb.GetInfoRequest(model=wanted.name))))

    @app.post("/v1/models/unload", tags=["admin"])
    async def unload(request: Request, wanted: UnloadIn) -> ModelsOut:
        """Stop serving a model, once what it is working on is done. For administrators."""
        await teacher.unload(wanted.name, call_of(request))
        return await models()

    @app.get("/v1/usage", tags=["teacher"], response_model=UsageOut)
    async def usage(request: Request, tenant: str = "") -> Response:
        """What tenants and runs have taken since the service started: one's own, and for an administrator all."""
        with counted("http", "GetUsage"):
            reply = teacher.usage_of(pb.GetUsageRequest(tenant=tenant), call_of(request))
            if speaks_protobuf(request):
                return _protobuf(reply)
            return Response(UsageOut.of(reply).model_dump_json(), media_type="application/json")

    @app.post("/v1/score", tags=["teacher"], response_model=ScoreOut, openapi_extra=_request_body(ScoreIn))
    async def score(request: Request) -> Response:
        """Log-probabilities of completions that somebody else sampled."""
        with counted("http", "Score"):
            if _sent_protobuf(request):
                message = await read_protobuf(request, pb.ScoreRequest)
            else:
                message = (await _read_json(request, ScoreIn)).to_proto()
            call = call_of(request).named(message.request_id, message.run_id)
            reply = await until_gone(request, teacher.score(message, call))
            if speaks_protobuf(request):
                return _protobuf(reply)
            return Response(ScoreOut.of(reply, message).model_dump_json(), media_type="application/json")

    @app.post("/v1/generate", tags=["teacher"], response_model=GenerateOut, openapi_extra=_request_body(GenerateIn))
    async def generate(request: Request) -> Response:
        """Completions sampled from the teacher. As protobuf: a stream of GenerateEvent, each after its length as a
        varint. As JSON: one object, or with `stream` a line for each event.
        """
        stream = False
        if _sent_protobuf(request):
            message = await read_protobuf(request, pb.GenerateRequest)
        else:
            asked = await _read_json(request, GenerateIn)
            message, stream = asked.to_proto(), asked.stream
        call = call_of(request).named(message.request_id, message.run_id)
        events = _events(teacher, message, call)
        if speaks_protobuf(request):
            return await _stream(request, events, PROTOBUF, _delimited)
        if stream:
            return await _stream(request, events, NDJSON, _line)
        collected = await until_gone(request, _collect(events))
        return Response(GenerateOut.of(call.request_id, collected).model_dump_json(), media_type="application/json")


async def _events(teacher: Teacher, message: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.GenerateEvent, None]:
    with counted("http", "Generate"):
        async with aclosing(teacher.generate(message, call)) as events:
            async for event in events:
                yield event


async def _collect(events: AsyncGenerator[pb.GenerateEvent, None]) -> list[pb.GenerateEvent]:
    async with aclosing(events):
        return [event async for event in events]


async def _next(events: AsyncGenerator[pb.GenerateEvent, None]) -> pb.GenerateEvent | None:
    return await anext(events, None)


async def _stream(
    request: Request,
    events: AsyncGenerator[pb.GenerateEvent, None],
    media_type: str,
    write: Callable[[pb.GenerateEvent], bytes],
) -> Response:
    """Events as they come. What fails before the first has a status of its own; later it is the last event."""
    first = await until_gone(request, _next(events))

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(events):
            event = first
            try:
                while event is not None:
                    yield write(event)
                    event = await until_gone(request, _next(events))
            except ServiceError as error:
                yield write(pb.GenerateEvent(finished=True, status=error.status()))
            except Exception as error:
                log.exception("a stream failed")
                yield write(pb.GenerateEvent(finished=True, status=internal(error).status()))

    return StreamingResponse(body(), media_type=media_type)


def _delimited(event: pb.GenerateEvent) -> bytes:
    buffer = BytesIO()
    serialize_length_prefixed(event, buffer)
    return buffer.getvalue()


def _line(event: pb.GenerateEvent) -> bytes:
    return GenerateEventOut.of(event).model_dump_json().encode() + b"\n"


def _protobuf(message: Message) -> Response:
    return Response(message.SerializeToString(), media_type=PROTOBUF)


def _as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _sent_protobuf(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith(PROTOBUF)


async def _read_json(request: Request, kind: type[S]) -> S:
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The body for /docs. The route reads it itself, as it may also be protobuf."""
    schema = inlined(kind.model_json_schema())
    binary = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, PROTOBUF: {"schema": binary}},
        }
    }
