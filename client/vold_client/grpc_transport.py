"""The gRPC wire."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic

import grpc

from vold_client import tracing
from vold_client.errors import NotFound, Unavailable, VoldError, again, exceeded, from_grpc
from vold_client.loop import client_loop, on_client_loop
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
pass through one poller that all loops of a process share, those of others too; a run must not hang on one that is late
or lost."""

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}: two bytes spare the client a dependency on the health package."""


class GrpcTransport:
    """One channel to one replica, which the first call opens. All of its calls run on the client loop (loop.py)."""

    def __init__(self, address: Address, api_key: str | None, tls: Tls) -> None:
        self.address = address
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._credentials = tls.grpc_credentials() if address.tls else None
        self._opened: grpc.aio.Channel | None = None

    @property
    def _channel(self) -> grpc.aio.Channel:
        """For code on the client loop: a channel belongs to the loop that makes it."""
        if self._opened is None:
            if self._credentials is not None:
                self._opened = grpc.aio.secure_channel(self.address.target, self._credentials, options=_OPTIONS)
            else:
                self._opened = grpc.aio.insecure_channel(self.address.target, options=_OPTIONS)
        return self._opened

    async def unary(self, method: Method[Request, Reply], message: Request, context: CallContext) -> Reply:
        metadata = self._describe(context)

        async def ask() -> Reply:
            call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
            async with asyncio.timeout(context.timeout + DEADLINE_GRACE):
                return await call(message, timeout=context.timeout, metadata=metadata)

        try:
            return await on_client_loop(ask())
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise exceeded(self.address.url) from None

    async def stream(
        self, method: Method[Request, Reply], message: Request, context: CallContext
    ) -> AsyncGenerator[Reply, None]:
        metadata = self._describe(context)
        loop = client_loop()
        end = loop.time() + context.timeout + DEADLINE_GRACE
        call: Any = None

        async def read() -> Any:
            nonlocal call
            if call is None:
                make = self._channel.unary_stream(
                    method.path, method.request.SerializeToString, method.reply.FromString
                )
                call = make(message, timeout=context.timeout, metadata=metadata)
            async with asyncio.timeout_at(end):
                return await call.read()  # a reply, or EOF

        try:
            while (event := await on_client_loop(read())) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # not in the stubs
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise exceeded(self.address.url) from None
        finally:
            loop.call_soon_threadsafe(lambda: call.cancel() if call is not None else None)

    def exchange(self, method: Method[Request, Reply], key: str, run_id: str) -> "GrpcExchange[Request, Reply]":
        metadata = self._describe(CallContext(0, run_id=run_id))

        def open_call() -> Any:
            make = self._channel.stream_stream(method.path, method.request.SerializeToString, method.reply.FromString)
            return make(None, metadata=metadata)

        return GrpcExchange(open_call, key, self.address.url)

    async def check_ready(self, timeout: float) -> None:
        async def ask() -> bytes:
            call = self._channel.unary_unary(_HEALTH_CHECK, None, None)
            async with asyncio.timeout(timeout + DEADLINE_GRACE):
                return await call(b"", timeout=timeout, metadata=self._metadata)

        try:
            answer = await on_client_loop(ask())
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
        async def close() -> None:
            await self._channel.close(None)  # one that no call has opened too: a call that comes later must fail

        await on_client_loop(close())

    def _describe(self, context: CallContext) -> tuple[tuple[str, str], ...]:
        named = (("x-request-id", context.request_id), ("x-vold-run-id", context.run_id))
        return self._metadata + tuple((key, value) for key, value in named if value) + tuple(tracing.headers().items())


class GrpcExchange(Generic[Request, Reply]):
    """Requests and replies of one bidirectional stream, matched by the field `key` of both. The first request opens
    the stream.
    """

    def __init__(self, open_call: Callable[[], Any], key: str, url: str) -> None:
        """open_call: runs on the client loop."""
        self._open_call = open_call
        self._call: Any = None
        self._key = key
        self._url = url
        self._pending: dict[str, asyncio.Future[Reply]] = {}
        self._sent = 0
        self._writing = asyncio.Lock()  # gRPC allows one write at a time
        self._failure: VoldError | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def broken(self) -> bool:
        return self._failure is not None

    async def ask(self, message: Request, timeout: float) -> Reply:
        return await on_client_loop(self._ask(message, timeout))

    async def aclose(self) -> None:
        await on_client_loop(self._aclose())

    async def _ask(self, message: Request, timeout: float) -> Reply:
        if self._reader is None:
            self._call = self._open_call()
            self._reader = asyncio.create_task(self._read())
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

    async def _aclose(self) -> None:
        if self._reader is None:
            return
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
