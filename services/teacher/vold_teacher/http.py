"""The HTTP face: it only translates. Each route takes and returns JSON or the wire's protobuf messages."""

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from io import BytesIO
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.proto import serialize_length_prefixed
from pydantic import BaseModel
from starlette.responses import JSONResponse
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError
from vold_service.http import (
    PROTOBUF,
    admit_call,
    cancel_on_disconnect,
    parse_call,
    quota_response,
    read_json,
    read_protobuf,
    sent_protobuf,
    sized_response,
    stream_events,
    wants_protobuf,
)

from vold_teacher.metrics import count_request, time_stage
from vold_teacher.openai.routes import add_openai_routes, list_models
from vold_teacher.reply import Form
from vold_teacher.schemas import (
    GenerateEventOut,
    GenerateIn,
    GenerateOut,
    LoadIn,
    ModelsOut,
    ScoreIn,
    ScoreOut,
    UnloadIn,
    UsageOut,
    generate_json,
    inline_definitions,
    pack_json,
    parse_json,
    score_json,
)
from vold_teacher.service import Teacher

NDJSON = "application/x-ndjson"

log = logging.getLogger("vold.teacher.http")
S = TypeVar("S", bound=BaseModel)
W = TypeVar("W", bound=Message)

INLINE_JSON_BYTES = 8192
"""A larger body is parsed by another process."""


def add_routes(app: FastAPI, teacher: Teacher) -> None:
    """Add the teacher's routes to the app."""
    add_openai_routes(app, teacher)
    _add_info_routes(app, teacher)
    _add_model_routes(app, teacher)
    _add_score_route(app, teacher)
    _add_generate_route(app, teacher)


def _tokenizer_json(packed: bytes) -> bytes:
    reply = pb.TokenizerReply.FromString(packed)
    values = {**_as_dict(reply), "tokenizer_json": reply.tokenizer_json.decode()}
    return json.dumps(values, ensure_ascii=False).encode()


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
            call = admit_call(request, teacher.quotas)
            reply = teacher.get_tokenizer(pb.GetTokenizerRequest(model=model), call)
            size = len(reply.tokenizer_json)
            if wants_protobuf(request):
                return sized_response([reply.SerializeToString()], PROTOBUF)
            body = await teacher.encode_json(_tokenizer_json, reply.SerializeToString(), size=size, call=call)
            return sized_response([body], "application/json")

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
    @app.post("/v1/models/load", tags=["admin"], openapi_extra=_request_body(LoadIn))
    async def load(request: Request) -> Response:
        """Serve another model from the server's --models-dir. For administrators."""
        body = await _read_json(request, parse_call(request), teacher, LoadIn)
        await teacher.models.load(body.name, body.path, parse_call(request))
        return JSONResponse(_as_dict(teacher.get_info(pb.GetInfoRequest(model=body.name))))

    @app.post("/v1/models/unload", tags=["admin"], openapi_extra=_request_body(UnloadIn))
    async def unload(request: Request) -> ModelsOut:
        """Stop serving a model once its requests under way are done. For administrators."""
        body = await _read_json(request, parse_call(request), teacher, UnloadIn)
        await teacher.models.unload(body.name, parse_call(request))
        return list_models(teacher)


def _add_score_route(app: FastAPI, teacher: Teacher) -> None:
    @app.post("/v1/score", tags=["teacher"], response_model=ScoreOut, openapi_extra=_request_body(ScoreIn))
    async def score(request: Request) -> Response:
        """Log-probabilities of completions that another model sampled."""
        with count_request("http", "Score"):
            call = admit_call(request, teacher.quotas)
            if sent_protobuf(request):
                message = await read_protobuf(request, call, pb.ScoreRequest, teacher.max_fields)
            else:
                message, _ = await _read_message(request, call, teacher, ScoreIn, pb.ScoreRequest)
            call = call.with_ids(message.request_id, message.run_id)
            protobuf = wants_protobuf(request)
            form = Form.MESSAGE if protobuf else Form.JSON
            answer = await cancel_on_disconnect(request, teacher.score(message, call, form))
            with time_stage("serialize"):
                pieces = await answer.whole()
                if protobuf:
                    return sized_response(pieces, PROTOBUF)
                reply = b"".join(pieces)
                body = await teacher.encode_json(
                    score_json, reply, message.SerializeToString(), size=len(reply), call=call
                )
            return sized_response([body], "application/json")


def _add_generate_route(app: FastAPI, teacher: Teacher) -> None:
    @app.post("/v1/generate", tags=["teacher"], response_model=GenerateOut, openapi_extra=_request_body(GenerateIn))
    async def generate(request: Request) -> Response:
        """Completions sampled from the teacher. As protobuf: a stream of GenerateEvent, each after its length as a
        varint. As JSON: one object, or with `stream` one line per event.
        """
        call = admit_call(request, teacher.quotas)
        stream = False
        if sent_protobuf(request):
            message = await read_protobuf(request, call, pb.GenerateRequest, teacher.max_fields)
        else:
            message, stream = await _read_message(request, call, teacher, GenerateIn, pb.GenerateRequest)
        call = call.with_ids(message.request_id, message.run_id)
        protobuf = wants_protobuf(request)
        whole = not (protobuf or stream)
        events = _events(teacher, message, call, whole=whole)
        if protobuf:
            return await _stream(request, events, PROTOBUF, _delimited)
        if stream:
            return await _stream(request, events, NDJSON, _line)
        collected = await cancel_on_disconnect(request, _collect(events))
        size = sum(map(len, collected))
        body = await teacher.encode_json(generate_json, call.request_id, collected, size=size, call=call)
        return sized_response([body], "application/json")


async def _events(
    teacher: Teacher, message: pb.GenerateRequest, call: Call, *, whole: bool
) -> AsyncGenerator[pb.GenerateEvent, None]:
    with count_request("http", "Generate"):
        async with aclosing(teacher.generate(message, call, whole=whole)) as events:
            async for event in events:
                yield event


async def _collect(events: AsyncGenerator[pb.GenerateEvent, None]) -> list[bytes]:
    """The events, packed."""
    async with aclosing(events):
        return [event.SerializeToString() async for event in events]


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


async def _read_json(request: Request, call: Call, teacher: Teacher, kind: type[S]) -> S:
    body = await read_json(request, call)
    if len(body) <= INLINE_JSON_BYTES:
        return parse_json(kind, body)
    return await teacher.processes.run(parse_json, kind, body, tenant=call.tenant)


async def _read_message(
    request: Request, call: Call, teacher: Teacher, kind: type[ScoreIn | GenerateIn], message: type[W]
) -> tuple[W, bool]:
    """The body as a message of the wire, and whether it asks for a stream."""
    body = await read_json(request, call)
    if len(body) <= INLINE_JSON_BYTES:
        packed, stream = pack_json(kind, body)
    else:
        packed, stream = await teacher.processes.run(pack_json, kind, body, tenant=call.tenant)
    return message.FromString(packed), stream


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
