"""The HTTP face: the messages of the gRPC face, as JSON or as application/x-protobuf."""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from google.protobuf.message import Message
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from vold_proto.v1 import verifier_pb2
from vold_service.app import make_app
from vold_service.call import Call
from vold_service.errors import MAX_NAME, Code, ServiceError, invalid
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
    wants_protobuf,
)
from vold_service.keys import Keys

from vold_verifier.engine.admission import check_count
from vold_verifier.engine.engine import Engine
from vold_verifier.reading.text import shorten

MAX_INTEGER_DIGITS = 308
"""A double, in which parameters travel, holds no integer with more digits."""


def _check_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate), which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_check_characters)]

INLINE_JSON_BYTES = 8192
"""A larger body is parsed by another process."""

INLINE_ITEMS = 64
"""Results that are written as JSON on the event loop; more are by another process."""


class ItemModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Text = ""
    verifier: Text
    completion: Text
    reference: Text = ""
    prompt: Text = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    zero_on_failure: bool = False

    @field_validator("reference", mode="before")
    @classmethod
    def _number_as_text(cls, reference: Any) -> Any:
        is_number = isinstance(reference, int | float) and not isinstance(reference, bool) and math.isfinite(reference)
        return str(reference) if is_number else reference

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
    """A request whose items are not read yet: each is read by itself, so that a bad item does not lose the others."""

    model_config = ConfigDict(extra="forbid")

    request_id: Text = ""
    run_id: Text = ""
    items: list[Any]


class DocumentedRequestModel(RequestModel):
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
    forgeable: bool
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
    app = make_app(
        "vold verifier",
        max_body_bytes=max_body_bytes,
        max_json_bytes=engine.settings.max_json_bytes,
        ready=ready,
        keys=keys,
        tls=tls,
    )

    @app.get("/v1/verifiers", response_model=ListModel, tags=["verifier"])
    async def list_verifiers(request: Request) -> Response:
        """The verifiers, each with the JSON schema of its parameters."""
        return _reply(request, engine.list_verifiers(), _verifiers_json)

    @app.get("/v1/quota", tags=["verifier"])
    async def quota(request: Request) -> Response:
        """The limits of the caller's tenant, and how much of them is used."""
        return quota_response(engine.get_quota(parse_call(request)), protobuf=wants_protobuf(request))

    body = {
        "content": {"application/json": {"schema": DocumentedRequestModel.model_json_schema()}, PROTOBUF: {}},
        "required": True,
    }

    @app.post("/v1/verify", response_model=ReplyModel, openapi_extra={"requestBody": body}, tags=["verifier"])
    async def verify(request: Request) -> Response:
        """A result for every item, in order. A bad item carries its own error and does not lose the others."""
        call = admit_call(request, engine.quotas)
        message, faults = await _read_request(request, call, engine)
        call = call.with_ids(message.request_id, message.run_id)
        reply = await cancel_on_disconnect(request, engine.verify(call, message.items, faults))
        if wants_protobuf(request):
            return sized_response([reply.SerializeToString()], PROTOBUF)
        if len(reply.results) <= INLINE_ITEMS:
            return sized_response([_reply_json(reply)], "application/json")
        packed = reply.SerializeToString()
        body = await engine.processes.run(_packed_reply_json, packed, tenant=call.tenant)
        return sized_response([body], "application/json")

    return app


async def _read_request(
    request: Request, call: Call, engine: Engine
) -> tuple[verifier_pb2.VerifyRequest, dict[int, ServiceError]]:
    """The request, and the errors, by index, of items that cannot be read: they stand in the request as empty items."""
    if sent_protobuf(request):
        return await read_protobuf(request, call, verifier_pb2.VerifyRequest, engine.max_fields), {}
    body = await read_json(request, call)
    if len(body) <= INLINE_JSON_BYTES:
        message, faults = _parse_json(body, engine.settings.max_items)
    else:
        parse = partial(_pack_json, max_items=engine.settings.max_items)
        packed, faults = await engine.processes.run(parse, body, tenant=call.tenant)
        message = verifier_pb2.VerifyRequest.FromString(packed)
    return message, {index: invalid(field, text) for index, (field, text) in faults.items()}


Faults = dict[int, tuple[str, str]]
"""The field and the message of each item that cannot be read, by index."""


def _pack_json(body: bytes | bytearray, max_items: int) -> tuple[bytes, Faults]:
    message, faults = _parse_json(body, max_items)
    return message.SerializeToString(), faults


def _parse_json(body: bytes | bytearray, max_items: int) -> tuple[verifier_pb2.VerifyRequest, Faults]:
    try:
        # Unlike pydantic's, the parser of the standard library accepts half of a character (\ud800) in a string.
        model = RequestModel.model_validate(json.loads(body, parse_int=_parse_integer))
        message = verifier_pb2.VerifyRequest(request_id=model.request_id, run_id=model.run_id)
    except ValidationError as error:
        raise invalid(*_describe(error, "")) from None
    except (ValueError, RecursionError) as error:
        raise invalid("body", f"body: invalid JSON: {str(error)[:200] or type(error).__name__}") from None
    check_count(len(model.items), max_items)
    faults: Faults = {}
    for index, item in enumerate(model.items):
        try:
            message.items.append(ItemModel.model_validate(item).to_message())
        except ValidationError as error:
            faults[index] = _describe(error, f"items[{index}]")
        except (ValueError, TypeError, RecursionError, OverflowError):
            field = f"items[{index}].parameters"
            faults[index] = (
                field,
                f"{field} cannot be read: send whole characters, finite numbers and at most 24 levels of nesting",
            )
        if index in faults:
            message.items.append(_empty_item(item))
    return message, faults


def _parse_integer(digits: str) -> int | float:
    """An integer; infinity for one with more digits than Python converts, which parameters then refuse by name."""
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else math.inf


def _describe(error: ValidationError, path: str) -> tuple[str, str]:
    """The first field that `error` names, below `path`, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    below = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    field = f"{path}{below}".lstrip(".")[:MAX_NAME] or "body"
    value = "" if first["type"] in ("missing", "extra_forbidden") else f"; got {shorten(repr(first['input']))[1:-1]}"
    message = f"{field}: {first['msg'][:MAX_NAME]}{value}".encode("utf-8", "replace").decode()
    return field.encode("utf-8", "replace").decode(), message


def _empty_item(item: Any) -> verifier_pb2.VerifyItem:
    """The stand-in for an item that cannot be read, with its id and verifier if these can."""
    empty = verifier_pb2.VerifyItem()
    if isinstance(item, dict):
        for name in ("id", "verifier"):
            value = item.get(name)
            if isinstance(value, str):
                setattr(empty, name, value.encode("utf-8", "replace").decode())
        empty.zero_on_failure = item.get("zero_on_failure") is True
    return empty


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


def _packed_reply_json(packed: bytes) -> bytes:
    return _reply_json(verifier_pb2.VerifyReply.FromString(packed))


def _reply_json(reply: verifier_pb2.VerifyReply) -> bytes:
    body = {
        "request_id": reply.request_id,
        "results": [_result_json(result) for result in reply.results],
        "server_version": reply.server_version,
    }
    return json.dumps(body, ensure_ascii=False).encode()


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
        "forgeable": result.forgeable,
        "error": error,
        "seconds": result.seconds,
        "parts": [
            {"name": part.name, "role": part.role, "weight": part.weight, "result": _result_json(part.result)}
            for part in result.parts
        ],
        "cached": result.cached,
    }
