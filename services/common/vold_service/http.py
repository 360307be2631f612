"""The HTTP face's common part: an app with request ids, a body limit, error replies, health, and one way to
speak each message as JSON or as protobuf.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from google.protobuf.message import DecodeError, Message
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage
from starlette.websockets import WebSocketClose
from vold_proto.v1 import status_pb2

from vold_service.call import Call
from vold_service.errors import HTTP_STATUS, ServiceError, internal, invalid
from vold_service.keys import Keys

PROTOBUF = "application/x-protobuf"
TIMEOUT_HEADER = "x-vold-timeout-seconds"
REQUEST_ID_HEADER = "x-request-id"
RUN_ID_HEADER = "x-vold-run-id"

HEALTH_PATH, READY_PATH = "/healthz", "/readyz"
"""What needs no key; see vold_service.keys."""

log = logging.getLogger("vold.http")
T = TypeVar("T")
M = TypeVar("M", bound=Message)


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
    return Call.start(
        request.headers.get(REQUEST_ID_HEADER, ""),
        request.headers.get(RUN_ID_HEADER, ""),
        seconds,
        request.state.grant,
    )


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
            raise ServiceError(status_pb2.CANCELLED, "the caller closed the connection")
        return task.result()
    finally:
        watch.cancel()
        task.cancel()


def make_app(title: str, *, max_body_bytes: int, ready: Callable[[], bool], keys: Keys) -> FastAPI:
    """A FastAPI app with /healthz, /readyz, /metrics, API keys, the body limit and the error replies."""
    app = FastAPI(title=title, docs_url="/docs", redoc_url=None)
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    app.add_middleware(Authentication, keys=keys)  # outside the limit: who has no key learns nothing else

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
        body = {"code": "NOT_FOUND" if error.status_code == 404 else "INVALID_ARGUMENT", "field": "path"}
        body["message"] = f"{request.method} {request.url.path}: {error.detail}; /docs lists the routes"
        return JSONResponse({"error": body}, error.status_code)

    @app.middleware("http")
    async def _request_id(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            response = await proceed(request)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.url.path)
            response = error_response(internal(error), protobuf=speaks_protobuf(request))
        if request_id := request.headers.get(REQUEST_ID_HEADER):
            response.headers[REQUEST_ID_HEADER] = request_id
        return response

    @app.get(HEALTH_PATH, tags=["health"])
    async def healthz() -> PlainTextResponse:
        """The process is up."""
        return PlainTextResponse("ok\n")

    @app.get(READY_PATH, tags=["health"])
    async def readyz() -> PlainTextResponse:
        """The service takes work; 503 while it warms up or drains."""
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return app
