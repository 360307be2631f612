"""The transport over gRPC."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic

import grpc

from vold_client import tracing
from vold_client.errors import NotFound, Unavailable, VoldError, copy_error, deadline_exceeded, from_grpc
from vold_client.keys import ApiKey
from vold_client.loop import client_loop, run_on_client_loop
from vold_client.methods import Method, Reply, Request
from vold_client.tls import Tls
from vold_client.transport import USER_AGENT, CallContext
from vold_client.urls import Address

_OPTIONS = [
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Detects a lost peer within a minute of a call; the kernel's own limit is hours.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The client retries by itself (replicas.py); gRPC's own backoff of up to two minutes would outlast its retries.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

DEADLINE_GRACE = 1.0
"""Seconds after the deadline at which the event loop's own timer ends a call that gRPC has not ended. gRPC's events
pass through one poller for all event loops of the process, and a run must not hang on a late or lost event."""

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}, spelled out so that the client does not depend on the health package."""


class GrpcTransport:
    """One channel to one replica, opened by the first call. All its calls run on the client loop (loop.py)."""

    def __init__(self, address: Address, api_key: ApiKey, tls: Tls) -> None:
        self.address = address
        self._api_key = api_key
        self._credentials = tls.grpc_credentials() if address.tls else None
        self._open_channel: grpc.aio.Channel | None = None

    @property
    def _channel(self) -> grpc.aio.Channel:
        """To be used on the client loop only: a channel belongs to the event loop that creates it."""
        if self._open_channel is None:
            if self._credentials is not None:
                self._open_channel = grpc.aio.secure_channel(self.address.target, self._credentials, options=_OPTIONS)
            else:
                self._open_channel = grpc.aio.insecure_channel(self.address.target, options=_OPTIONS)
        return self._open_channel

    async def unary(self, method: Method[Request, Reply], message: Request, context: CallContext) -> Reply:
        metadata = self._call_metadata(context)

        async def send() -> Reply:
            call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
            async with asyncio.timeout(context.timeout + DEADLINE_GRACE):
                return await call(message, timeout=context.timeout, metadata=metadata)

        try:
            return await run_on_client_loop(send())
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise deadline_exceeded(self.address.url) from None

    async def stream(
        self, method: Method[Request, Reply], message: Request, context: CallContext
    ) -> AsyncGenerator[Reply, None]:
        metadata = self._call_metadata(context)
        loop = client_loop()
        end = loop.time() + context.timeout + DEADLINE_GRACE
        call: Any = None

        async def read() -> Any:
            nonlocal call
            if call is None:
                start_call = self._channel.unary_stream(
                    method.path, method.request.SerializeToString, method.reply.FromString
                )
                call = start_call(message, timeout=context.timeout, metadata=metadata)
            async with asyncio.timeout_at(end):
                return await call.read()  # a reply, or EOF

        try:
            while (event := await run_on_client_loop(read())) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # not in the stubs
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise deadline_exceeded(self.address.url) from None
        finally:
            loop.call_soon_threadsafe(lambda: call.cancel() if call is not None else None)

    def request_stream(
        self, method: Method[Request, Reply], id_field: str, run_id: str
    ) -> "GrpcRequestStream[Request, Reply]":
        key = self._api_key.value
        metadata = self._call_metadata(CallContext(0, run_id=run_id))

        def open_call() -> Any:
            start_call = self._channel.stream_stream(
                method.path, method.request.SerializeToString, method.reply.FromString
            )
            return start_call(None, metadata=metadata)

        return GrpcRequestStream(open_call, id_field, self.address.url, lambda: self._api_key.value != key)

    async def check_ready(self, timeout: float) -> None:
        async def send() -> bytes:
            call = self._channel.unary_unary(_HEALTH_CHECK, None, None)
            async with asyncio.timeout(timeout + DEADLINE_GRACE):
                return await call(b"", timeout=timeout, metadata=self._key_metadata())

        try:
            reply = await run_on_client_loop(send())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise NotFound(
                    "answers, but has no health service: is it a vold service?", url=self.address.url
                ) from None
            raise from_grpc(error, self.address.url) from None
        except TimeoutError:
            raise deadline_exceeded(self.address.url) from None
        if reply != _SERVING:
            raise Unavailable("is up but does not take work yet, or no longer", url=self.address.url)

    async def aclose(self) -> None:
        async def close() -> None:
            await self._channel.close(None)  # also a channel that no call has opened: a later call must fail

        await run_on_client_loop(close())

    def _call_metadata(self, context: CallContext) -> tuple[tuple[str, str], ...]:
        ids = (("x-request-id", context.request_id), ("x-vold-run-id", context.run_id))
        given = tuple((key, value) for key, value in ids if value)
        return self._key_metadata() + given + tuple(tracing.headers().items())

    def _key_metadata(self) -> tuple[tuple[str, str], ...]:
        header = self._api_key.header
        return (("authorization", header),) if header else ()


class GrpcRequestStream(Generic[Request, Reply]):
    """Requests and replies of one bidirectional stream, matched by the field `id_field` of both. The first request
    opens the stream.
    """

    def __init__(self, open_call: Callable[[], Any], id_field: str, url: str, has_old_key: Callable[[], bool]) -> None:
        """open_call: opens the gRPC stream; called on the client loop. has_old_key: see RequestStream."""
        self._open_call = open_call
        self._has_old_key = has_old_key
        self._call: Any = None
        self._id_field = id_field
        self._url = url
        self._pending: dict[str, asyncio.Future[Reply]] = {}
        self._parts: dict[str, Reply] = {}
        self._sent = 0
        self._writing = asyncio.Lock()  # gRPC allows one write at a time
        self._failure: VoldError | None = None
        self._replied = self._lost_reason = False
        self._reader: asyncio.Task[None] | None = None

    @property
    def broken(self) -> bool:
        return self._failure is not None

    @property
    def has_old_key(self) -> bool:
        return self._has_old_key()

    @property
    def lost_refusal(self) -> bool:
        return self._lost_reason and not self._replied

    async def call(self, message: Request, timeout: float) -> Reply:
        return await run_on_client_loop(self._send(message, timeout))

    async def aclose(self) -> None:
        await run_on_client_loop(self._aclose())

    async def _send(self, message: Request, timeout: float) -> Reply:
        if self._reader is None:
            self._call = self._open_call()
            self._reader = asyncio.create_task(self._read())
        message_id = getattr(message, self._id_field)
        self._sent += 1
        if not message_id or message_id in self._pending:
            message_id = f"{message_id}#{self._sent}"
            setattr(message, self._id_field, message_id)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[message_id] = future
        try:
            async with asyncio.timeout(timeout):
                async with self._writing:
                    if self._failure is not None:
                        raise copy_error(self._failure)
                    # If the stream has just broken, the reader sets the error on the future.
                    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await self._call.write(message)
                return await future
        except TimeoutError:
            raise deadline_exceeded(self._url) from None
        finally:
            self._pending.pop(message_id, None)
            self._parts.pop(message_id, None)

    async def _aclose(self) -> None:
        if self._reader is None:
            return
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _join(self, reply_id: str, reply: Reply) -> Reply | None:
        """A whole reply; None until the last of its parts has come."""
        if not getattr(reply, "part", 0):  # the wire counts parts from 1
            return reply
        if reply_id not in self._pending:
            self._parts.pop(reply_id, None)
            return None
        if reply_id in self._parts:
            self._parts[reply_id].MergeFrom(reply)  # the scores of both, in order
        else:
            self._parts[reply_id] = reply
        return self._parts.pop(reply_id) if getattr(reply, "last", True) else None

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                self._replied = True
                reply_id = getattr(reply, self._id_field)
                if (whole := self._join(reply_id, reply)) is None:
                    continue
                reply, future = whole, self._pending.pop(reply_id, None)
                if future is not None and not future.done():
                    future.set_result(reply)
            self._failure = Unavailable("the service ended the stream", url=self._url)
        except grpc.aio.AioRpcError as error:
            # If a write is under way when the service ends the call, gRPC drops the status that the service sent.
            self._lost_reason = "Internal error from Core" in (error.details() or "")
            self._failure = from_grpc(error, self._url)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(copy_error(self._failure))
