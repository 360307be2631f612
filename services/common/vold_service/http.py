"""The part of the HTTP face that all services share: an app with request ids, a body limit, error replies and health,
and the choice between JSON and protobuf.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from google.protobuf.message import DecodeError, Message
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
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
from vold_service.errors import HTTP_STATUS, ServiceError, internal, invalid
from vold_service.keys import Keys
from vold_service.page import routes_page_reply, status_page_reply
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
                reply = error_response(internal(error), protobuf=wants_protobuf(Request(scope)))
                await reply(scope, receive, send_with_id)


DISCONNECTED = "the caller closed the connection"


class BodyLimitMiddleware:
    """Refuses a body over `limit` bytes: at once if the request declares its length, else when the limit is passed."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            await error_response(self._error(int(declared)), protobuf=False)(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> AsgiMessage:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.limit:
                    raise self._error(received)
            return message

        await self.app(scope, receive_within_limit, send)

    def _error(self, size: int) -> ServiceError:
        message = f"the body has {size} bytes or more, over the limit of {self.limit}: send smaller batches"
        return invalid("body", message)


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
                    response = error_response(error, protobuf=wants_protobuf(headers))
                    await response(scope, receive, send)
                return
            scope.setdefault("state", {})["grant"] = grant
        await self.app(scope, receive, send)


def error_response(error: ServiceError, *, protobuf: bool) -> Response:
    """`{"error": {code, message, field, retry_seconds, reason}}` as JSON, or a Status message as protobuf."""
    access.record_error(error)
    headers = {"retry-after": str(math.ceil(error.retry_seconds))} if error.retry_seconds else {}
    if error.code == status_pb2.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Basic realm="vold: any user name, the API key as the password", charset="UTF-8"'
    status = HTTP_STATUS[error.code]
    if protobuf:
        return Response(error.status().SerializeToString(), status, headers, PROTOBUF)
    body = {
        "code": status_pb2.Code.Name(error.code),
        "message": error.message,
        "field": error.field,
        "retry_seconds": error.retry_seconds,
        "reason": error.reason,
    }
    return JSONResponse({"error": body}, status, headers)


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


async def read_protobuf(request: Request, kind: type[M]) -> M:
    try:
        return kind.FromString(await request.body())
    except DecodeError as error:
        raise invalid("body", f"the body is not a {kind.DESCRIPTOR.full_name} message: {error}") from error


def parse_call(request: Request) -> Call:
    """The request's call: request id, run id, tenant and deadline, from the headers."""
    timeout = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = None if timeout is None else float(timeout)
    except ValueError:
        seconds = math.nan
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise invalid(TIMEOUT_HEADER, f"{TIMEOUT_HEADER} is {timeout!r}: give a number of seconds above 0")
    record = access.current_record()
    request_id = record.request_id if record is not None else request.headers.get(REQUEST_ID_HEADER, "")
    call = Call.start(request_id, request.headers.get(RUN_ID_HEADER, ""), seconds, request.state.grant)
    access.set_caller(call)
    return call


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


def make_app(title: str, *, max_body_bytes: int, ready: Callable[[], bool], keys: Keys, tls: bool = False) -> FastAPI:
    """A FastAPI app with /healthz, /readyz, /metrics, API keys, the body limit and the error replies.

    tls: whether it is served with TLS.
    """
    app = FastAPI(title=title, version=VERSION, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimitMiddleware, limit=max_body_bytes)
    app.add_middleware(AuthenticationMiddleware, keys=keys, tls=tls)  # outside the body limit: keys are checked first
    app.add_middleware(AccessMiddleware)
    app.add_middleware(HeadersMiddleware)  # added last, so the outermost

    @app.exception_handler(ServiceError)
    async def _service_error(request: Request, error: ServiceError) -> Response:
        return error_response(error, protobuf=wants_protobuf(request))

    @app.exception_handler(RequestValidationError)
    async def _bad_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        value = repr(first.get("input"))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return error_response(invalid(field, f"{field}: {first['msg']}; got {shown}"), protobuf=wants_protobuf(request))

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        code = status_pb2.NOT_FOUND if error.status_code == 404 else status_pb2.INVALID_ARGUMENT
        message = f"{request.method} {request.url.path}: {error.detail}; /docs lists the routes"
        refusal = ServiceError(code, message, field="path")
        access.record_error(refusal)
        body = {"code": status_pb2.Code.Name(code), "field": "path", "message": message, "reason": refusal.reason}
        return JSONResponse({"error": body}, error.status_code)

    add_health(app, ready)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return routes_page_reply(app.openapi())

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return app


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
