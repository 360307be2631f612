"""The part of the HTTP face that all services share: an app with request ids, a body limit, error replies and health,
and the choice between JSON and protobuf.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from google.protobuf.message import Message
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Metric, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage
from starlette.websockets import WebSocketClose
from vold_proto.distribution import VERSION
from vold_proto.v1 import quota_pb2, status_pb2

from vold_service import access
from vold_service.browsers import HeadersMiddleware, check_same_site
from vold_service.call import Call
from vold_service.errors import HTTP_STATUS, ServiceError, describe_invalid, internal, invalid, shown
from vold_service.keys import Keys
from vold_service.messages import parse_message
from vold_service.page import routes_page_reply, status_page_reply
from vold_service.quota import Place, Quotas
from vold_service.settings import MIB
from vold_service.tenants import Tenant

PROTOBUF = "application/x-protobuf"
TIMEOUT_HEADER = "x-vold-timeout-seconds"
REQUEST_ID_HEADER = "x-request-id"
RUN_ID_HEADER = "x-vold-run-id"

HEALTH_PATH, READY_PATH = "/healthz", "/readyz"
"""The paths that need no API key; see vold_service.keys."""

log = logging.getLogger("vold.http")
T = TypeVar("T")
E = TypeVar("E")
M = TypeVar("M", bound=Message)


QUIET_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/v1/status"})
"""The paths that probes and the status page poll: not traced, and logged only if the request fails."""


class AccessMiddleware:
    """Opens an access record for every request (vold_service.access), puts the request id on the reply, and replies
    with an error if the app fails.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        reply_started = False
        with access.record_request(
            "http",
            f"{method} {path}",
            request_id=headers.get(REQUEST_ID_HEADER, ""),
            quiet=path in QUIET_PATHS,
            headers=headers,
        ) as record:

            async def send_with_id(message: AsgiMessage) -> None:
                nonlocal reply_started
                if message["type"] == "http.response.start":
                    reply_started = True
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = access.header_value(record.request_id)
                await send(message)

            try:
                await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                access.record_error(ServiceError(status_pb2.CANCELLED, DISCONNECTED))
            except Exception as error:
                log.exception("%s %s failed", method, path)
                if reply_started:
                    access.record_error(internal(error))
                    raise  # the server then closes the connection, so the caller sees that the reply is incomplete
                await error_reply(internal(error), scope)(scope, receive, send_with_id)


DISCONNECTED = "the caller closed the connection"


class BodyLimitMiddleware:
    """Refuses a body over `limit` bytes, or over `json_limit` if it is not protobuf: at once if the request declares
    its length, else when the limit is passed.
    """

    def __init__(self, app: ASGIApp, limit: int, json_limit: int) -> None:
        self.app = app
        self.limit = limit
        self.json_limit = min(json_limit, limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        protobuf = headers.get(b"content-type", b"").startswith(PROTOBUF.encode())
        limit = self.limit if protobuf else self.json_limit
        if declared.isdigit() and int(declared[:20]) > limit:
            await error_reply(_too_large(int(declared[:20]), limit), scope)(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> AsgiMessage:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise _too_large(received, limit)
            return message

        await self.app(scope, receive_within_limit, send)


def _too_large(size: int, limit: int) -> ServiceError:
    message = f"the body has {size} bytes or more, over the limit of {limit}: send smaller batches, or {PROTOBUF}"
    return invalid("body", message)


class PlaceMiddleware:
    """Gives back the place of a request (`admit_call`) when its reply is sent or given up."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            place: Place | None = scope.get("state", {}).get("place")
            if place is not None:
                place.close()


class AuthenticationMiddleware:
    """Refuses a request without a valid key before its body is read. vold_service.keys says which paths need no key.
    Without keys, refuses a request of another site's page (vold_service.browsers).

    The key is a bearer token. On GET it may also be the password of HTTP Basic, which browsers ask the user for. No
    other method takes Basic: a browser would also send the password with a request that another site makes it post.
    """

    def __init__(self, app: ASGIApp, keys: Keys, tls: bool) -> None:
        self.app = app
        self.keys = keys
        self.tls = tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == HEALTH_PATH:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        header = headers.get("authorization")
        if header is not None or scope["path"] != READY_PATH:
            try:
                grant = self.keys.authenticate(header, basic=scope.get("method") in ("GET", "HEAD"))
                if self.keys.open:
                    check_same_site(headers, tls=self.tls)
            except ServiceError as error:
                if scope["type"] == "websocket":
                    await WebSocketClose(1008, status_pb2.Code.Name(error.code))(scope, receive, send)
                else:
                    await error_reply(error, scope)(scope, receive, send)
                return
            scope.setdefault("state", {})["grant"] = grant
        await self.app(scope, receive, send)


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
        raise _too_large(len(body), limit)
    return body


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


def add_status_page(app: FastAPI, snapshot: Callable[[Tenant], dict[str, Any]], package: str) -> None:
    """Add GET /v1/status, and the status page at / with the content of the package's status.html.

    snapshot: returns the state that the tenant may see.
    """
    html = status_page_reply(package, app.title)

    @app.get("/", include_in_schema=False)
    async def status_page() -> Response:
        return html

    @app.get("/v1/status", tags=["health"])
    async def status(request: Request) -> dict[str, Any]:
        """The service's current state, for people: queue, work done, tenants. /metrics is for machines."""
        return snapshot(parse_call(request).tenant)


def make_app(
    title: str,
    *,
    max_body_bytes: int,
    max_json_bytes: int = MIB,
    ready: Callable[[], bool],
    keys: Keys,
    tls: bool = False,
) -> FastAPI:
    """A FastAPI app with /healthz, /readyz, /metrics, API keys, the limits of bodies and the error replies.

    tls: whether it is served with TLS.
    """
    app = FastAPI(title=title, version=VERSION, docs_url=None, redoc_url=None)
    app.state.max_json_bytes = max_json_bytes
    app.add_middleware(PlaceMiddleware)
    app.add_middleware(BodyLimitMiddleware, limit=max_body_bytes, json_limit=max_json_bytes)
    app.add_middleware(AuthenticationMiddleware, keys=keys, tls=tls)  # outside the body limit: keys are checked first
    app.add_middleware(AccessMiddleware)
    app.add_middleware(HeadersMiddleware)  # added last, so the outermost

    @app.exception_handler(ServiceError)
    async def _service_error(request: Request, error: ServiceError) -> Response:
        return error_reply(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def _bad_request(request: Request, error: RequestValidationError) -> Response:
        return error_reply(describe_invalid(error.errors()), request.scope)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        code = status_pb2.NOT_FOUND if error.status_code == 404 else status_pb2.INVALID_ARGUMENT
        message = f"{request.method} {shown(request.url.path)}: {error.detail}; /docs lists the routes"
        return error_reply(ServiceError(code, message, field="path"), request.scope, error.status_code)

    add_health(app, ready)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return routes_page_reply(app.openapi())

    @app.get("/metrics", tags=["health"])
    async def metrics(request: Request) -> Response:
        """Prometheus metrics: all of them for a tenant with `admin` or `metrics`, for another its own."""
        tenant = request.state.grant.tenant
        visible = REGISTRY if tenant.sees_all else MetricsOf(tenant.name)
        return Response(generate_latest(visible), media_type=CONTENT_TYPE_LATEST)

    return app


class MetricsOf:
    """The metrics of one tenant, for `generate_latest`: the samples with its name as the label `tenant`."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            samples = [sample for sample in family.samples if sample.labels.get("tenant") == self.tenant]
            if samples:
                own = Metric(family.name, family.documentation, family.type, family.unit)
                own.samples = samples
                yield own


def add_health(app: FastAPI, ready: Callable[[], bool]) -> None:
    """Add the paths that probes ask for."""

    @app.get(HEALTH_PATH, tags=["health"])
    async def healthz() -> PlainTextResponse:
        """The process is up."""
        return PlainTextResponse("ok\n")

    @app.get(READY_PATH, tags=["health"])
    async def readyz() -> PlainTextResponse:
        """The service accepts requests; 503 while it warms up or drains."""
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)


def make_probe_app(ready: Callable[[], bool]) -> FastAPI:
    """An app with the health paths only, for a separate listener."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(HeadersMiddleware)
    add_health(app, ready)
    return app
