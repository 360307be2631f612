"""The HTTP face's common part: an app with request ids, a body limit, error replies, health, and one way to
speak each message as JSON or as protobuf.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine
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
from vold_proto.v1 import status_pb2

from vold_service import access
from vold_service.call import Call
from vold_service.errors import HTTP_STATUS, ServiceError, internal, invalid
from vold_service.keys import Keys
from vold_service.page import page
from vold_service.tenants import Tenant

PROTOBUF = "application/x-protobuf"
TIMEOUT_HEADER = "x-vold-timeout-seconds"
REQUEST_ID_HEADER = "x-request-id"
RUN_ID_HEADER = "x-vold-run-id"

HEALTH_PATH, READY_PATH = "/healthz", "/readyz"
"""What needs no key; see vold_service.keys."""

log = logging.getLogger("vold.http")
T = TypeVar("T")
M = TypeVar("M", bound=Message)


QUIET = frozenset({"/", "/healthz", "/readyz", "/metrics", "/v1/status"})
"""What probes and the status page ask for all the time: not traced, and logged only where it fails."""


class Access:
    """A record of every request (vold_service.access), its id on the reply, and a reply where the app failed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        began = False
        with access.recording(
            "http",
            f"{method} {path}",
            request_id=headers.get(REQUEST_ID_HEADER, ""),
            quiet=path in QUIET,
            headers=headers,
        ) as record:

            async def named(message: AsgiMessage) -> None:
                nonlocal began
                if message["type"] == "http.response.start":
                    began = True
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = access.printable(record.request_id)
                await send(message)

            try:
                await self.app(scope, receive, named)
            except ClientDisconnect:
                access.fail(ServiceError(status_pb2.CANCELLED, GONE))
            except Exception as error:
                log.exception("%s %s failed", method, path)
                if began:
                    access.fail(internal(error))
                    raise  # the server cuts the connection, so that the caller does not take it for the whole reply
                reply = error_response(internal(error), protobuf=speaks_protobuf(Request(scope)))
                await reply(scope, receive, named)


GONE = "the caller closed the connection"


class BodyLimit:
    """Refuses a body over `limit` bytes: at once where its length is declared, else as soon as it shows."""

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
        seen = 0

        async def limited() -> AsgiMessage:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.limit:
                    raise self._error(seen)
            return message

        await self.app(scope, limited, send)

    def _error(self, size: int) -> ServiceError:
        message = f"the body has {size} bytes or more, over the limit of {self.limit}: send smaller batches"
        return invalid("body", message)


class Authentication:
    """Refuses who has no key, without reading the body; see vold_service.keys for what needs none.

    The key is a bearer token. On GET it may also be the password of HTTP Basic, for browsers, which ask for it; on no
    other method, because a browser would send it along with whatever another site's page makes it post.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == HEALTH_PATH:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        header = headers.get("authorization")
        if header is not None or scope["path"] != READY_PATH:
            try:
                grant = self.keys.authenticate(header, basic=scope.get("method") in ("GET", "HEAD"))
            except ServiceError as error:
                if scope["type"] == "websocket":
                    await WebSocketClose(1008, "UNAUTHENTICATED")(scope, receive, send)
                else:
                    response = error_response(error, protobuf=speaks_protobuf(headers))
                    await response(scope, receive, send)
                return
            scope.setdefault("state", {})["grant"] = grant
        await self.app(scope, receive, send)


def error_response(error: ServiceError, *, protobuf: bool) -> Response:
    """`{"error": {code, message, field, retry_seconds}}`, or a Status message where protobuf is spoken."""
    access.fail(error)
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
    }
    return JSONResponse({"error": body}, status, headers)


def speaks_protobuf(request: Request | Headers) -> bool:
    """Whether the reply goes out as protobuf: by Accept, else in the kind the request came in."""
    headers = request if isinstance(request, Headers) else request.headers
    accept = headers.get("accept", "")
    if PROTOBUF in accept:
        return True
    return "json" not in accept and headers.get("content-type", "").startswith(PROTOBUF)


async def read_protobuf(request: Request, kind: type[M]) -> M:
    try:
        return kind.FromString(await request.body())
    except DecodeError as error:
        raise invalid("body", f"the body is not a {kind.DESCRIPTOR.full_name} message: {error}") from error


def call_of(request: Request) -> Call:
    """The call's id, run, tenant and deadline, from its headers."""
    timeout = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = None if timeout is None else float(timeout)
    except ValueError:
        seconds = math.nan
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise invalid(TIMEOUT_HEADER, f"{TIMEOUT_HEADER} is {timeout!r}: give a number of seconds above 0")
    record = access.current()
    request_id = record.request_id if record is not None else request.headers.get(REQUEST_ID_HEADER, "")
    call = Call.start(request_id, request.headers.get(RUN_ID_HEADER, ""), seconds, request.state.grant)
    access.identify(call)
    return call


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, cancelled as soon as the caller closes the connection. The body must have been read."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise ServiceError(status_pb2.CANCELLED, GONE)
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        # Where this call is cancelled itself, as a server does more than once, the work ends before its owner goes on:
        # a generator that is still running cannot be closed.
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})


def add_status(app: FastAPI, snapshot: Callable[[Tenant], dict[str, Any]], package: str) -> None:
    """Add GET /v1/status, and the page at / that shows it: the package's status.html.

    snapshot: the state as that tenant may see it.
    """
    html = page(package)

    @app.get("/", include_in_schema=False)
    async def status_page() -> Response:
        return html

    @app.get("/v1/status", tags=["health"])
    async def status(request: Request) -> dict[str, Any]:
        """The state at a glance: what waits, what was done, who asked. For people; /metrics is for machines."""
        return snapshot(call_of(request).tenant)


def make_app(title: str, *, max_body_bytes: int, ready: Callable[[], bool], keys: Keys) -> FastAPI:
    """A FastAPI app with /healthz, /readyz, /metrics, API keys, the body limit and the error replies."""
    app = FastAPI(title=title, version=VERSION, docs_url="/docs", redoc_url=None)
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    app.add_middleware(Authentication, keys=keys)  # outside the limit: who has no key learns nothing else
    app.add_middleware(Access)  # added last, it is the outermost

    @app.exception_handler(ServiceError)
    async def _service_error(request: Request, error: ServiceError) -> Response:
        return error_response(error, protobuf=speaks_protobuf(request))

    @app.exception_handler(RequestValidationError)
    async def _bad_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        value = repr(first.get("input"))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return error_response(
            invalid(field, f"{field}: {first['msg']}; got {shown}"), protobuf=speaks_protobuf(request)
        )

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        code = status_pb2.NOT_FOUND if error.status_code == 404 else status_pb2.INVALID_ARGUMENT
        message = f"{request.method} {request.url.path}: {error.detail}; /docs lists the routes"
        access.fail(ServiceError(code, message, field="path"))
        body = {"code": status_pb2.Code.Name(code), "field": "path", "message": message}
        return JSONResponse({"error": body}, error.status_code)

    add_health(app, ready)

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return app


def add_health(app: FastAPI, ready: Callable[[], bool]) -> None:
    """What probes ask."""

    @app.get(HEALTH_PATH, tags=["health"])
    async def healthz() -> PlainTextResponse:
        """The process is up."""
        return PlainTextResponse("ok\n")

    @app.get(READY_PATH, tags=["health"])
    async def readyz() -> PlainTextResponse:
        """The service takes work; 503 while it warms up or drains."""
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)


def probe_app(ready: Callable[[], bool]) -> FastAPI:
    """Health alone, for a listener of its own."""
    app = FastAPI(openapi_url=None)
    add_health(app, ready)
    return app
