"""The app of a service's HTTP face: keys, the limit of bodies, error replies, health, metrics and the status page."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Metric, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage
from starlette.websockets import WebSocketClose
from vold_proto.distribution import VERSION
from vold_proto.v1 import status_pb2

from vold_service import access
from vold_service.browsers import HeadersMiddleware, check_same_site
from vold_service.errors import ServiceError, describe_invalid, internal, shown
from vold_service.http import DISCONNECTED, PROTOBUF, REQUEST_ID_HEADER, error_reply, parse_call, too_large
from vold_service.keys import Keys
from vold_service.page import routes_page_reply, status_page_reply
from vold_service.quota import Place
from vold_service.settings import MIB
from vold_service.tenants import Tenant

HEALTH_PATH, READY_PATH = "/healthz", "/readyz"
"""The paths that need no API key; see vold_service.keys."""

QUIET_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/v1/status"})
"""The paths that probes and the status page poll: not traced, and logged only if the request fails."""

log = logging.getLogger("vold.http")


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
            await error_reply(too_large(int(declared[:20]), limit), scope)(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> AsgiMessage:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise too_large(received, limit)
            return message

        await self.app(scope, receive_within_limit, send)


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
