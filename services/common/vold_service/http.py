"""Requests and replies of the HTTP faces: who calls and until when, bodies and events as JSON or protobuf, errors. The
app that they belong to is made in `vold_service.app`.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.types import Scope
from vold_proto.v1 import quota_pb2, status_pb2

from vold_service import access
from vold_service.call import Call
from vold_service.errors import HTTP_STATUS, ServiceError, internal, invalid, shown
from vold_service.messages import parse_message
from vold_service.quota import Quotas

PROTOBUF = "application/x-protobuf"
TIMEOUT_HEADER = "x-vold-timeout-seconds"
REQUEST_ID_HEADER = "x-request-id"
RUN_ID_HEADER = "x-vold-run-id"
DISCONNECTED = "the caller closed the connection"

T = TypeVar("T")
E = TypeVar("E")
M = TypeVar("M", bound=Message)


class OtherErrors(Protocol):
    """The errors of paths that have another service's API. An app with such paths has it as `state.other_errors`."""

    def has(self, path: str) -> bool:
        """Whether `path` is one of them."""

    def write(self, error: ServiceError) -> tuple[int, dict[str, Any]]:
        """(the HTTP status, the body as JSON) of an error."""


def error_reply(error: ServiceError, scope: Scope, status: int = 0) -> Response:
    """The reply to a request that fails: a Status message as protobuf where the caller wants that, else JSON, of the
    form that the path's API has: `{"error": {code, message, field, retry_seconds, reason}}` unless it is another's.

    status: of HTTP, if it is not the error's own.
    """
    access.record_error(error)
    headers = {"retry-after": str(math.ceil(error.retry_seconds))} if error.retry_seconds else {}
    if error.code == status_pb2.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Basic realm="vold: any user name, the API key as the password", charset="UTF-8"'
    if wants_protobuf(Headers(scope=scope)):
        return Response(error.status().SerializeToString(), status or HTTP_STATUS[error.code], headers, PROTOBUF)
    others: OtherErrors | None = getattr(scope["app"].state, "other_errors", None)
    if others is not None and others.has(scope["path"]):
        other_status, other_body = others.write(error)
        return JSONResponse(other_body, status or other_status, headers)
    body = {
        "code": status_pb2.Code.Name(error.code),
        "message": error.message,
        "field": error.field,
        "retry_seconds": error.retry_seconds,
        "reason": error.reason,
    }
    return JSONResponse({"error": body}, status or HTTP_STATUS[error.code], headers)


def wants_protobuf(request: Request | Headers) -> bool:
    """Whether the reply is protobuf: as Accept says, else as the request's own content type."""
    headers = request if isinstance(request, Headers) else request.headers
    accept = headers.get("accept", "")
    if PROTOBUF in accept:
        return True
    return "json" not in accept and headers.get("content-type", "").startswith(PROTOBUF)


def quota_response(quota: quota_pb2.Quota, *, protobuf: bool) -> Response:
    """The reply of GET /v1/quota. In JSON an absent limit is null."""
    if protobuf:
        return Response(quota.SerializeToString(), media_type=PROTOBUF)
    values = {
        field.name: getattr(quota, field.name) if not field.has_presence or quota.HasField(field.name) else None
        for field in quota.DESCRIPTOR.fields
    }
    return JSONResponse(values)


def sent_protobuf(request: Request) -> bool:
    """Whether the request's body is protobuf."""
    return request.headers.get("content-type", "").startswith(PROTOBUF)


async def read_body(request: Request, call: Call) -> bytearray:
    """The body, whose bytes the call's place holds as they arrive."""
    declared = _declared_length(request)
    body = bytearray()  # grows with its chunks: to join them at the end would stop the loop
    async for chunk in request.stream():
        body += chunk
        if call.place is not None and (undeclared := min(len(chunk), len(body) - declared)) > 0:
            call.place.hold(undeclared)
    return body


async def read_protobuf(request: Request, call: Call, kind: type[M], max_fields: int) -> M:
    """The body as a message. See vold_service.messages."""
    return await parse_message(kind, await read_body(request, call), max_fields, "body")


async def read_json(request: Request, call: Call) -> bytearray:
    """The body, within the limit of JSON whatever its content type says. It is not parsed."""
    body = await read_body(request, call)
    limit: int = request.app.state.max_json_bytes
    if len(body) > limit:
        raise too_large(len(body), limit)
    return body


def too_large(size: int, limit: int) -> ServiceError:
    """The error of a body over the limit of bytes."""
    message = f"the body has {size} bytes or more, over the limit of {limit}: send smaller batches, or {PROTOBUF}"
    return invalid("body", message)


def _declared_length(request: Request) -> int:
    declared = request.headers.get("content-length", "0")[:20]
    return int(declared) if declared.isdecimal() and declared.isascii() else 0


def parse_call(request: Request) -> Call:
    """The request's call: request id, run id, tenant and deadline, from the headers."""
    timeout = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = None if timeout is None else float(timeout)
    except ValueError:
        seconds = math.nan
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise invalid(TIMEOUT_HEADER, f"{TIMEOUT_HEADER} is {shown(timeout)}: give a number of seconds above 0")
    record = access.current_record()
    request_id = record.request_id if record is not None else request.headers.get(REQUEST_ID_HEADER, "")
    call = Call.start(request_id, request.headers.get(RUN_ID_HEADER, ""), seconds, request.state.grant)
    access.set_caller(call)
    return call


def admit_call(request: Request, quotas: Quotas) -> Call:
    """The request's call, with a place of its tenant's, which PlaceMiddleware gives back. Call it before the body is
    read. Raises RESOURCE_EXHAUSTED if the tenant is over a limit.
    """
    call = parse_call(request).with_place(quotas, _declared_length(request))
    request.state.place = call.place
    return call


SLICE_BYTES = 1 << 18


def sized_response(parts: Sequence[bytes], media_type: str) -> Response:
    """A reply that is sent as fast as its caller reads it: a large body is handed to the connection in slices, so that
    its place is held until the last slice.
    """
    if sum(map(len, parts)) <= SLICE_BYTES:
        return Response(b"".join(parts), media_type=media_type)

    async def slices() -> AsyncIterator[bytes]:
        gathered: list[bytes] = []
        size = 0
        for part in parts:
            for start in range(0, len(part), SLICE_BYTES):
                piece = part[start : start + SLICE_BYTES]
                gathered.append(piece)
                size += len(piece)
                if size >= SLICE_BYTES:
                    yield b"".join(gathered)
                    gathered, size = [], 0
        yield b"".join(gathered)

    return StreamingResponse(slices(), headers={"content-length": str(sum(map(len, parts)))}, media_type=media_type)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the caller disconnects. The request's body must be read already."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise ServiceError(status_pb2.CANCELLED, DISCONNECTED)
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()
        # A server may cancel this call itself, more than once. Wait until the work has ended even then: the caller may
        # close a generator that the work runs, and a running generator cannot be closed.
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})


async def stream_events(
    request: Request,
    events: AsyncGenerator[E, None],
    write: Callable[[E], bytes],
    write_error: Callable[[ServiceError], bytes],
    *,
    end: bytes = b"",
    log: logging.Logger,
) -> AsyncIterator[bytes]:
    """The body of a reply that streams events. An error before the first event is raised, so that it sets the reply's
    status; a later error is the last event. end: what follows the last event. log: for errors other than ServiceError.
    """

    async def next_event() -> E | None:
        return await anext(events, None)

    first = await cancel_on_disconnect(request, next_event())

    async def body() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(events):
            event = first
            try:
                while event is not None:
                    yield write(event)
                    event = await cancel_on_disconnect(request, next_event())
            except ServiceError as error:
                yield write_error(error)
            except Exception as error:
                log.exception("a stream failed")
                yield write_error(internal(error))
            if end:
                yield end

    return body()
