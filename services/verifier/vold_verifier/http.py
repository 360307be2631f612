"""The HTTP face: the messages of the gRPC face, as JSON or as application/x-protobuf."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from vold_proto.v1 import verifier_pb2
from vold_service.errors import Code, invalid
from vold_service.http import (
    PROTOBUF,
    cancel_on_disconnect,
    make_app,
    parse_call,
    quota_response,
    read_protobuf,
    wants_protobuf,
)
from vold_service.keys import Keys

from vold_verifier.engine.engine import Engine


class ItemModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = ""
    verifier: str
    completion: str
    reference: str = ""
    prompt: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    zero_on_failure: bool = False

    def to_message(self) -> verifier_pb2.VerifyItem:
        item = verifier_pb2.VerifyItem(
            id=self.id,
            verifier=self.verifier,
            completion=self.completion,
            reference=self.reference,
            prompt=self.prompt,
            zero_on_failure=self.zero_on_failure,
        )
        if self.parameters:
            item.parameters.update(self.parameters)
        return item


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request_id: str = ""
    run_id: str = ""
    items: list[ItemModel]


class StatusModel(BaseModel):
    code: str
    message: str
    field: str
    retry_seconds: float
    reason: str


class PartModel(BaseModel):
    """One part, gate or penalty of a composite, with its own result."""

    name: str
    role: str
    weight: float
    result: "ResultModel"


class ResultModel(BaseModel):
    """reward: null beside an error, unless the item has zero_on_failure: a missing reward is not a zero."""

    id: str
    reward: float | None
    correct: bool | None
    extracted: str | None
    reason: str
    rule: str
    error: StatusModel | None
    seconds: float
    parts: list[PartModel] = Field(default_factory=list)
    cached: bool


class ReplyModel(BaseModel):
    request_id: str
    results: list[ResultModel]
    server_version: str


class VerifierModel(BaseModel):
    name: str
    summary: str
    parameters_schema: dict[str, Any]
    pool: str


class ListModel(BaseModel):
    verifiers: list[VerifierModel]
    server_version: str
    time_limit_seconds: float
    sandbox_layers: list[str]


def create_app(
    engine: Engine, *, max_body_bytes: int, ready: Callable[[], bool], keys: Keys, tls: bool = False
) -> FastAPI:
    app = make_app("vold verifier", max_body_bytes=max_body_bytes, ready=ready, keys=keys, tls=tls)

    @app.get("/v1/verifiers", response_model=ListModel, tags=["verifier"])
    async def list_verifiers(request: Request) -> Response:
        """The verifiers, each with the JSON schema of its parameters."""
        return _reply(request, engine.list_verifiers(), _verifiers_json)

    @app.get("/v1/quota", tags=["verifier"])
    async def quota(request: Request) -> Response:
        """The limits of the caller's tenant, and how much of them is used."""
        return quota_response(engine.get_quota(parse_call(request)), protobuf=wants_protobuf(request))

    body = {
        "content": {"application/json": {"schema": RequestModel.model_json_schema()}, PROTOBUF: {}},
        "required": True,
    }

    @app.post("/v1/verify", response_model=ReplyModel, openapi_extra={"requestBody": body}, tags=["verifier"])
    async def verify(request: Request) -> Response:
        """A result for every item, in order. A bad item carries its own error and does not lose the others."""
        call = parse_call(request)
        message = await _read_request(request)
        call = call.with_ids(message.request_id, message.run_id)
        reply = await cancel_on_disconnect(request, engine.verify(call, message.items))
        return _reply(request, reply, _reply_json)

    return app


async def _read_request(request: Request) -> verifier_pb2.VerifyRequest:
    if request.headers.get("content-type", "").startswith(PROTOBUF):
        return await read_protobuf(request, verifier_pb2.VerifyRequest)
    try:
        model = RequestModel.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise invalid(field or "body", f"{field or 'body'}: {first['msg']}") from None
    return verifier_pb2.VerifyRequest(
        request_id=model.request_id, run_id=model.run_id, items=[item.to_message() for item in model.items]
    )


def _reply(request: Request, message: Message, as_json: Callable[[Any], dict[str, Any]]) -> Response:
    if wants_protobuf(request):
        return Response(message.SerializeToString(), media_type=PROTOBUF)
    return Response(json.dumps(as_json(message), ensure_ascii=False), media_type="application/json")


def _verifiers_json(reply: verifier_pb2.ListVerifiersReply) -> dict[str, Any]:
    return {
        "verifiers": [
            {
                "name": info.name,
                "summary": info.summary,
                "parameters_schema": json.loads(info.parameters_schema),
                "pool": info.pool,
            }
            for info in reply.verifiers
        ],
        "server_version": reply.server_version,
        "time_limit_seconds": reply.time_limit_seconds,
        "sandbox_layers": list(reply.sandbox_layers),
    }


def _reply_json(reply: verifier_pb2.VerifyReply) -> dict[str, Any]:
    return {
        "request_id": reply.request_id,
        "results": [_result_json(result) for result in reply.results],
        "server_version": reply.server_version,
    }


def _result_json(result: verifier_pb2.VerifyResult) -> dict[str, Any]:
    error = None
    if result.HasField("error"):
        error = {
            "code": Code.Name(result.error.code),
            "message": result.error.message,
            "field": result.error.field,
            "retry_seconds": result.error.retry_seconds,
            "reason": result.error.reason,
        }
    return {
        "id": result.id,
        "reward": result.reward if result.HasField("reward") else None,
        "correct": result.correct if result.HasField("correct") else None,
        "extracted": result.extracted if result.HasField("extracted") else None,
        "reason": result.reason,
        "rule": result.rule,
        "error": error,
        "seconds": result.seconds,
        "parts": [
            {"name": part.name, "role": part.role, "weight": part.weight, "result": _result_json(part.result)}
            for part in result.parts
        ],
        "cached": result.cached,
    }
