"""The part of the gRPC face that all services share: calls, errors as statuses, a server with health and reflection."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vold_service import access
from vold_service.call import Call
from vold_service.descriptors import connections_of_a_face
from vold_service.errors import GRPC_STATUS, STATUS_METADATA, ServiceError, internal
from vold_service.keys import OPEN_GRANT, Grant, Keys
from vold_service.messages import parse_message, peek_text
from vold_service.quota import Place, Quotas
from vold_service.tls import Tls

REQUEST_ID_METADATA = "x-request-id"
RUN_ID_METADATA = "x-vold-run-id"
AUTHORIZATION_METADATA = "authorization"
CONNECTION_IDLE_FACTOR = 10
"""A connection without a call is closed after this many times the idle time of the service."""
MIN_MESSAGE_BYTES_PER_SECOND = 1 << 18
"""A call's request message has the time of the largest one at this rate, and the idle time of the service."""
MAX_CONNECTION_CALLS = 100
"""Calls of one connection at a time; a caller's further calls wait at the caller. Streams that are reset count until
the server has dealt with them: without this limit a flood of them fills gRPC's queue, in which honest calls are lost.
"""
HEALTH_METHODS = f"/{health.SERVICE_NAME}/"

log = logging.getLogger("vold.grpc")


_authenticate: ContextVar[Callable[[], Grant]] = ContextVar("authenticate", default=lambda: OPEN_GRANT)
"""Authenticates the key of the current RPC. Called again for each request of a stream, because the key may expire."""


_place: ContextVar[Place | None] = ContextVar("place", default=None)
"""The place of the current RPC."""


def parse_call(context: grpc.aio.ServicerContext, request_id: str = "", run_id: str = "") -> Call:
    """The call's request id, run id and deadline, from the message if it has them, else from the metadata.

    Raises UNAUTHENTICATED if the key that opened a stream is no longer valid, INVALID_ARGUMENT for an id that is too
    long.
    """
    metadata = text_metadata(context)
    record = access.current_record()
    call = Call.start(
        record.request_id if record is not None else metadata.get(REQUEST_ID_METADATA, ""),
        metadata.get(RUN_ID_METADATA, ""),
        context.time_remaining(),
        _authenticate.get()(),
    )
    return replace(call, place=_place.get()).with_ids(request_id, run_id)


def text_metadata(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """The call's metadata without binary entries."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


class _AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses a call without a valid key before the request is read. vold_service.keys says which calls need no key."""

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
                return _refusing_handler(error)
            _authenticate.set(lambda: self._keys.authenticate(header))
        return await continuation(handler_call_details)


def _refusing_handler(error: ServiceError) -> grpc.RpcMethodHandler:
    """A handler that ends the call at once. Always a stream handler, because gRPC does not read a stream's messages."""

    async def refuse(_requests: object, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        await abort(context, error)
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """End the call with the code and text of the error, and the whole Status as trailing metadata."""
    if not isinstance(error, ServiceError):
        log.error("a call failed", exc_info=error)
        error = internal(error)
    access.record_error(error)
    status = (STATUS_METADATA, error.status().SerializeToString())
    await context.abort(GRPC_STATUS[error.code], error.message, (status, *_request_id_metadata()))
    raise AssertionError("abort does not return")


def _request_id_metadata() -> tuple[tuple[str, str], ...]:
    record = access.current_record()
    return ((REQUEST_ID_METADATA, access.header_value(record.request_id)),) if record is not None else ()


class _CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Takes the requests of a service as bytes. For every call it opens an access record (vold_service.access), for
    every method in `placed` a place of the caller's tenant, and only then parses the request. Requests of a stream stay
    bytes, for the servicer to do the same with each (`parse_placed`).

    Returns the request id as trailing metadata. A reply may be bytes already.
    """

    def __init__(self, services: list[str], quotas: Quotas, placed: frozenset[str], max_fields: int) -> None:
        self._kinds = {
            f"/{name}/{method.name}": GetMessageClass(method.input_type)
            for name in services
            for method in Default().FindServiceByName(name).methods
        }
        self._quotas = quotas
        self._placed = placed
        self._max_fields = max_fields

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        kind = self._kinds.get(handler_call_details.method)
        if handler is None or kind is None:
            return handler  # health, reflection and unknown methods
        method = handler_call_details.method.rpartition("/")[2]

        def recorded(context: grpc.aio.ServicerContext) -> Any:
            metadata = text_metadata(context)
            return access.record_request(
                "grpc", method, request_id=metadata.get(REQUEST_ID_METADATA, ""), headers=metadata
            )

        async def parse(data: bytes, context: grpc.aio.ServicerContext) -> Any:
            try:
                if method in self._placed:
                    request_id = peek_text(kind, data, "request_id")
                    place = parse_call(context, request_id).with_place(self._quotas, len(data)).place
                    assert place is not None
                    _place.set(place)
                    at_end: Any = context.add_done_callback  # when the reply is sent or given up
                    at_end(lambda _: place.close())
                return await parse_message(kind, data, self._max_fields)
            except Exception as error:
                await abort(context, error)

        async def unary(data: bytes, context: grpc.aio.ServicerContext) -> Any:
            with recorded(context):
                reply = await handler.unary_unary(await parse(data, context), context)
                context.set_trailing_metadata(_request_id_metadata())
                return reply

        async def server_stream(data: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with recorded(context):
                async for reply in handler.unary_stream(await parse(data, context), context):
                    yield reply
                context.set_trailing_metadata(_request_id_metadata())

        async def both_stream(requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with recorded(context):
                async for reply in handler.stream_stream(requests, context):
                    yield reply
                context.set_trailing_metadata(_request_id_metadata())

        def serialize(reply: Any) -> bytes:
            return reply if isinstance(reply, bytes) else handler.response_serializer(reply)

        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, None, serialize)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(server_stream, None, serialize)
        return grpc.stream_stream_rpc_method_handler(both_stream, None, serialize)


class _SlowMessageInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call whose only request message has not arrived after `seconds`. A stream's messages may take their time:
    its tenant's limit on requests holds.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """A call's handler that reads the message itself: gRPC calls any other handler after it has read it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler

        async def unary(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
            return await handler.unary_unary(await self._read(requests, context), context)

        async def server_stream(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async for reply in handler.unary_stream(await self._read(requests, context), context):
                yield reply

        serializers = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(server_stream, *serializers)
        return grpc.stream_unary_rpc_method_handler(unary, *serializers)

    async def _read(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        try:
            async with asyncio.timeout(self._seconds):
                return await anext(aiter(requests))
        except TimeoutError:
            message = f"the request has not arrived within {self._seconds:.0f} s: send a smaller one"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, message)
        except StopAsyncIteration:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message: send one")


class GrpcServer:
    """A grpc.aio server with the standard health service and reflection. keys: the callers' API keys. tls: None for
    plain text; a Unix socket is always in plain text.

    Add servicers to `server`, then call `start`. Health reports SERVING after `set_ready(True)`.
    """

    def __init__(
        self,
        *,
        max_body_bytes: int,
        services: list[str],
        quotas: Quotas,
        placed: frozenset[str],
        max_fields: int,
        keys: Keys,
        tls: Tls | None = None,
        idle_seconds: float = 30.0,
    ) -> None:
        """quotas: of the tenants. placed: names of the methods, other than of streams, whose calls take a place.
        max_fields: of one request (vold_service.messages).
        """
        self.tls = tls
        self.server = grpc.aio.server(
            interceptors=[
                _SlowMessageInterceptor(idle_seconds + max_body_bytes / MIN_MESSAGE_BYTES_PER_SECOND),
                _CallInterceptor(services, quotas, placed, max_fields),
                _AuthenticationInterceptor(keys),
            ],
            options=[
                ("grpc.max_receive_message_length", max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", MAX_CONNECTION_CALLS),
                # A client may send keepalive pings while a long call sends no data.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                # Close the connection of a peer that has gone silently or that never speaks HTTP/2.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.server_handshake_timeout_ms", round(idle_seconds * 1000)),
                # A caller opens its connection again when it needs it. Not earlier: gRPC writes a line to its stderr.
                ("grpc.max_connection_idle_ms", round(CONNECTION_IDLE_FACTOR * idle_seconds * 1000)),
                ("grpc.max_allowed_incoming_connections", connections_of_a_face()),
            ],
        )
        self.services = ["", *services]
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def start(self, address: str) -> str:
        """Listen on HOST:PORT or unix:PATH. Returns the address with the bound port."""
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
