"""The gRPC face's common part: calls, errors as statuses, and a server with health and reflection."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vold_service import access
from vold_service.call import Call
from vold_service.errors import GRPC_STATUS, STATUS_METADATA, ServiceError, internal, invalid
from vold_service.keys import EVERYBODY, Grant, Keys
from vold_service.tls import Tls

REQUEST_ID_METADATA = "x-request-id"
RUN_ID_METADATA = "x-vold-run-id"
AUTHORIZATION_METADATA = "authorization"
HEALTH_METHODS = f"/{health.SERVICE_NAME}/"

log = logging.getLogger("vold.grpc")


_authenticate: ContextVar[Callable[[], Grant]] = ContextVar("authenticate", default=lambda: EVERYBODY)
"""Whom the RPC under way stands for. Asked again for each request of a stream, which may outlive its key."""


def call_of(context: grpc.aio.ServicerContext, request_id: str = "", run_id: str = "") -> Call:
    """The call's id, run and deadline: from the message where it names them, else from the metadata.

    Raises UNAUTHENTICATED where the key that began a stream is no longer good.
    """
    metadata = headers(context)
    record = access.current()
    call = Call.start(
        record.request_id if record is not None else metadata.get(REQUEST_ID_METADATA, ""),
        metadata.get(RUN_ID_METADATA, ""),
        context.time_remaining(),
        _authenticate.get()(),
    )
    return call.named(request_id, run_id)


def headers(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """The call's metadata that is text."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


class _Authentication(grpc.aio.ServerInterceptor):
    """Refuses who has no key, without reading the request; see vold_service.keys for what needs none."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        metadata: Any = handler_call_details.invocation_metadata
        header = dict(metadata or ()).get(AUTHORIZATION_METADATA)
        if header is not None or not handler_call_details.method.startswith(HEALTH_METHODS):
            try:
                self._keys.authenticate(header)
            except ServiceError as error:
                return _refusal(error)
            _authenticate.set(lambda: self._keys.authenticate(header))
        return await continuation(handler_call_details)


def _refusal(error: ServiceError) -> grpc.RpcMethodHandler:
    """A handler that ends the call at once. As a stream, whatever the method is: a stream's messages stay unread."""

    async def refuse(_requests: object, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        await abort(context, error)
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """End the call with the error's code and text; the whole Status goes along as trailing metadata."""
    if not isinstance(error, ServiceError):
        log.error("a call failed", exc_info=error)
        error = internal(error)
    access.fail(error)
    status = (STATUS_METADATA, error.status().SerializeToString())
    await context.abort(GRPC_STATUS[error.code], error.message, (status, *_request_id()))
    raise AssertionError("abort does not return")


def _request_id() -> tuple[tuple[str, str], ...]:
    record = access.current()
    return ((REQUEST_ID_METADATA, access.printable(record.request_id)),) if record is not None else ()


class _Malformed:
    """Stands for a request that could not be parsed, until there is a context to refuse it with."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Access(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """A record of every call (vold_service.access) and its id in the trailing metadata. What is no message of the
    method's kind is INVALID_ARGUMENT, where gRPC by itself says UNKNOWN.
    """

    def __init__(self, services: list[str]) -> None:
        self._prefixes = tuple(f"/{name}/" for name in services)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefixes):
            return handler  # health, reflection, and what does not exist
        method = handler_call_details.method.rpartition("/")[2]

        def record(context: grpc.aio.ServicerContext) -> Any:
            metadata = headers(context)
            return access.recording("grpc", method, request_id=metadata.get(REQUEST_ID_METADATA, ""), headers=metadata)

        async def check(request: Any, context: grpc.aio.ServicerContext) -> None:
            if isinstance(request, _Malformed):
                await abort(context, invalid("request", f"the request of {method} cannot be parsed: {request.error}"))

        async def unary(request: Any, context: grpc.aio.ServicerContext) -> Any:
            with record(context):
                await check(request, context)
                reply = await handler.unary_unary(request, context)
                context.set_trailing_metadata(_request_id())
                return reply

        async def server_stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with record(context):
                await check(request, context)
                async for reply in handler.unary_stream(request, context):
                    yield reply
                context.set_trailing_metadata(_request_id())

        async def both_stream(requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with record(context):
                async for reply in handler.stream_stream(requests, context):
                    yield reply
                context.set_trailing_metadata(_request_id())

        def parse(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except (
                Exception
            ) as error:  # DecodeError in both of protobuf's implementations; nothing else is at work here
                return _Malformed(error)

        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, parse, handler.response_serializer)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(server_stream, parse, handler.response_serializer)
        return grpc.stream_stream_rpc_method_handler(
            both_stream, handler.request_deserializer, handler.response_serializer
        )


class GrpcServer:
    """A grpc.aio server with the standard health service and reflection. keys: who may call. tls: None for plain text;
    a Unix socket is always in plain text.

    Add servicers to `server`, then `start`. Health says SERVING from `set_ready(True)` on.
    """

    def __init__(
        self,
        *,
        max_body_bytes: int,
        services: list[str],
        keys: Keys,
        tls: Tls | None = None,
        idle_seconds: float = 30.0,
    ) -> None:
        self.tls = tls
        self.server = grpc.aio.server(
            interceptors=[Access(services), _Authentication(keys)],
            options=[
                ("grpc.max_receive_message_length", max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # A client may ask whether this end is alive while a long call says nothing.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                # A peer that has gone without a word, or that never speaks HTTP/2, is let go.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.server_handshake_timeout_ms", round(idle_seconds * 1000)),
            ],
        )
        self.services = ["", *services]
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def start(self, address: str) -> str:
        """Listen on HOST:PORT or unix:PATH; returns the address with the port that was bound."""
        await self.set_ready(False)
        try:
            if self.tls is None or address.startswith("unix:"):
                port = self.server.add_insecure_port(address)
            else:
                port = self.server.add_secure_port(address, self.tls.grpc_credentials())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is it in use? ({error})") from error
        await self.server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def set_ready(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.gather(*(self.health.set(name, state) for name in self.services))

    async def stop(self, grace: float) -> None:
        await self.server.stop(grace)
