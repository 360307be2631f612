"""The gRPC wire."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Generic

import grpc

from vold_client import tracing
from vold_client.errors import NotFound, Unavailable, VoldError, again, exceeded, from_grpc
from vold_client.methods import Method, Reply, Request
from vold_client.tls import Tls
from vold_client.transport import USER_AGENT, CallContext
from vold_client.urls import Address

_OPTIONS = [
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A dead peer behind a silent network shows within a minute of a call, not after the kernel's hours.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The retries above this wire decide when to come back; gRPC's own pause of up to two minutes would outlast them.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

DEADLINE_GRACE = 1.0
"""Seconds after which the event loop's own timer ends a call that gRPC has not ended at its deadline. gRPC's events
pass through one poller that all loops of a process share; a run must not hang on one that is late or lost."""

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}: two bytes spare the client a dependency on the health package."""


class GrpcTransport:
    """One channel to one replica. Made inside the event loop that uses it."""

    def __init__(self, address: Address, api_key: str | None, tls: Tls) -> None:
        self.address = address
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        if address.tls:
            self._channel = grpc.aio.secure_channel(address.target, tls.grpc_credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address.target, options=_OPTIONS)

    async def unary(self, method: Method[Request, Reply], message: Request, context: CallContext) -> Reply:
        call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
        try:
            async with asyncio.timeout(context.timeout + DEADLINE_GRACE):
                return await call(message, timeout=context.timeout, metadata=self._describe(context))
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise exceeded(self.address.url) from None

    async def stream(
        self, method: Method[Request, Reply], message: Request, context: CallContext
    ) -> AsyncGenerator[Reply, None]:
        open_call = self._channel.unary_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        call = open_call(message, timeout=context.timeout, metadata=self._describe(context))
        end = asyncio.get_running_loop().time() + context.timeout + DEADLINE_GRACE
        try:
            while True:
                async with asyncio.timeout_at(end):
                    event: Any = await call.read()  # a reply, or EOF
                if event is grpc.aio.EOF:  # type: ignore[attr-defined]  # not in the stubs
                    break
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise exceeded(self.address.url) from None
        finally:
            call.cancel()

    def exchange(self, method: Method[Request, Reply], key: str, run_id: str) -> "GrpcExchange[Request, Reply]":
        open_call = self._channel.stream_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        return GrpcExchange(
            open_call(None, metadata=self._describe(CallContext(0, run_id=run_id))), key, self.address.url
        )

    async def check_ready(self, timeout: float) -> None:
        call = self._channel.unary_unary(_HEALTH_CHECK, None, None)
        try:
            async with asyncio.timeout(timeout + DEADLINE_GRACE):
                answer = await call(b"", timeout=timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise NotFound(
                    "answers, but has no health service: is it a vold service?", url=self.address.url
                ) from None
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise exceeded(self.address.url) from None
        if answer != _SERVING:
            raise Unavailable("is up but does not take work yet, or no longer", url=self.address.url)

    async def aclose(self) -> None:
        await self._channel.close(None)

    def _describe(self, context: CallContext) -> tuple[tuple[str, str], ...]:
        named = (("x-request-id", context.request_id), ("x-vold-run-id", context.run_id))
        return self._metadata + tuple((key, value) for key, value in named if value) + tuple(tracing.headers().items())


class GrpcExchange(Generic[Request, Reply]):
    """Requests and replies of one bidirectional stream, matched by the field `key` of both."""

    def __init__(self, call: Any, key: str, url: str) -> None:
        self._call = call
        self._key = key
        self._url = url
        self._pending: dict[str, asyncio.Future[Reply]] = {}
        self._sent = 0
        self._writing = asyncio.Lock()  # gRPC allows one write at a time
        self._failure: VoldError | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def broken(self) -> bool:
        return self._failure is not None

    async def ask(self, message: Request, timeout: float) -> Reply:
        key = getattr(message, self._key)
        self._sent += 1
        if not key or key in self._pending:
            key = f"{key}#{self._sent}"
            setattr(message, self._key, key)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        try:
            async with asyncio.timeout(timeout):
                async with self._writing:
                    if self._failure is not None:
                        raise again(self._failure)
                    # Where the stream has just broken, the reader says why, through the future.
                    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await self._call.write(message)
                return await future
        except TimeoutError:
            raise exceeded(self._url) from None
        finally:
            self._pending.pop(key, None)

    async def aclose(self) -> None:
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                future = self._pending.pop(getattr(reply, self._key), None)
                if future is not None and not future.done():
                    future.set_result(reply)
            self._failure = Unavailable("the service ended the stream", url=self._url)
        except grpc.aio.AioRpcError as error:
            self._failure = from_grpc(error, self._url)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(again(self._failure))
