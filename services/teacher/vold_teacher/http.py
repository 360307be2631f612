"""The HTTP face: it only translates. Each route takes and returns JSON or the wire's protobuf messages."""

import logging
from collections.abc import AsyncGenerator, Callable
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
from vold_service.errors import ServiceError
from vold_service.http import (
    PROTOBUF,
    cancel_on_disconnect,
    parse_call,
    quota_response,
    read_protobuf,
    stream_events,
    wants_protobuf,
)

from vold_teacher.metrics import count_request
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
    inline_definitions,
)
from vold_teacher.service import Teacher

NDJSON = "application/x-ndjson"

log = logging.getLogger("vold.teacher.http")
S = TypeVar("S", bound=BaseModel)


def add_routes(app: FastAPI, teacher: Teacher) -> None:
    """Add the teacher's routes to the app."""
    add_openai_routes(app, teacher)
    _add_info_routes(app, teacher)
    _add_model_routes(app, teacher)
    _add_score_route(app, teacher)
    _add_generate_route(app, teacher)


def _add_info_routes(app: FastAPI, teacher: Teacher) -> None:
    @app.get("/v1/info", tags=["teacher"])
    async def info(request: Request, model: str = "") -> Response:
        """The model's identity, limits and capabilities."""
        with count_request("http", "GetInfo"):
            reply = teacher.get_info(pb.GetInfoRequest(model=model))
            return _protobuf(reply) if wants_protobuf(request) else JSONResponse(_as_dict(reply))

    @app.get("/v1/tokenizer", tags=["teacher"])
    async def tokenizer(request: Request, model: str = "") -> Response:
        """The tokenizer file; in JSON as text, under tokenizer_json."""
        with count_request("http", "GetTokenizer"):
            reply = teacher.get_tokenizer(pb.GetTokenizerRequest(model=model))
            if wants_protobuf(request):
                return _protobuf(reply)
            return JSONResponse({**_as_dict(reply), "tokenizer_json": reply.tokenizer_json.decode()})

    @app.get("/v1/usage", tags=["teacher"], response_model=UsageOut)
    async def usage(request: Request, tenant: str = "") -> Response:
        """Usage of tenants and runs since the service started: the caller's own, or for an administrator all."""
        with count_request("http", "GetUsage"):
            reply = teacher.get_usage(pb.GetUsageRequest(tenant=tenant), parse_call(request))
            if wants_protobuf(request):
                return _protobuf(reply)
            return Response(UsageOut.of(reply).model_dump_json(), media_type="application/json")

    @app.get("/v1/quota", tags=["teacher"])
    async def quota(request: Request) -> Response:
        """The limits of the caller's tenant, and how much of them is used."""
        with count_request("http", "GetQuota"):
            return quota_response(teacher.get_quota(parse_call(request)), protobuf=wants_protobuf(request))


def _add_model_routes(app: FastAPI, teacher: Teacher) -> None:
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
    async def load(request: Request, body: LoadIn) -> Response:
        """Serve another model from the server's --models-dir. For administrators."""
        await teacher.load(body.name, body.path, parse_call(request))
        return JSONResponse(_as_dict(teacher.get_info(pb.GetInfoRequest(model=body.name))))

    @app.post("/v1/models/unload", tags=["admin"])
    async def unload(request: Request, body: UnloadIn) -> ModelsOut:
        """Stop serving a model once its requests under way are done. For administrators."""
        await teacher.unload(body.name, parse_call(request))
        return await models()


def _add_score_route(app: FastAPI, teacher: Teacher) -> None:
    @app.post("/v1/score", tags=["teacher"], response_model=ScoreOut, openapi_extra=_request_body(ScoreIn))
    async def score(request: Request) -> Response:
        """Log-probabilities of completions that another model sampled."""
        with count_request("http", "Score"):
            if _sent_protobuf(request):
                message = await read_protobuf(request, pb.ScoreRequest)
            else:
                message = (await _read_json(request, ScoreIn)).to_proto()
            call = parse_call(request).with_ids(message.request_id, message.run_id)
            reply = await cancel_on_disconnect(request, teacher.score(message, call))
            if wants_protobuf(request):
                return _protobuf(reply)
            return Response(ScoreOut.of(reply, message).model_dump_json(), media_type="application/json")


def _add_generate_route(app: FastAPI, teacher: Teacher) -> None:
    @app.post("/v1/generate", tags=["teacher"], response_model=GenerateOut, openapi_extra=_request_body(GenerateIn))
    async def generate(request: Request) -> Response:
        """Completions sampled from the teacher. As protobuf: a stream of GenerateEvent, each after its length as a
        varint. As JSON: one object, or with `stream` one line per event.
        """
        stream = False
        if _sent_protobuf(request):
            message = await read_protobuf(request, pb.GenerateRequest)
        else:
            body = await _read_json(request, GenerateIn)
            message, stream = body.to_proto(), body.stream
        call = parse_call(request).with_ids(message.request_id, message.run_id)
        events = _events(teacher, message, call)
        if wants_protobuf(request):
            return await _stream(request, events, PROTOBUF, _delimited)
        if stream:
            return await _stream(request, events, NDJSON, _line)
        collected = await cancel_on_disconnect(request, _collect(events))
        return Response(GenerateOut.of(call.request_id, collected).model_dump_json(), media_type="application/json")


async def _events(teacher: Teacher, message: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.GenerateEvent, None]:
    with count_request("http", "Generate"):
        async with aclosing(teacher.generate(message, call)) as events:
            async for event in events:
                yield event


async def _collect(events: AsyncGenerator[pb.GenerateEvent, None]) -> list[pb.GenerateEvent]:
    async with aclosing(events):
        return [event async for event in events]


async def _stream(
    request: Request,
    events: AsyncGenerator[pb.GenerateEvent, None],
    media_type: str,
    write: Callable[[pb.GenerateEvent], bytes],
) -> Response:
    def write_error(error: ServiceError) -> bytes:
        return write(pb.GenerateEvent(finished=True, status=error.status()))

    body = await stream_events(request, events, write, write_error, log=log)
    return StreamingResponse(body, media_type=media_type)


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
    """The request body for /docs: the route itself reads it, since it may also be protobuf."""
    schema = inline_definitions(kind.model_json_schema())
    binary = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, PROTOBUF: {"schema": binary}},
        }
    }
