"""The base of both services' clients: connections, readiness, deadlines, closing."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from vold_proto.v1 import quota_pb2

from vold_client.concurrency import Deadline, check_timeout
from vold_client.errors import InvalidArgument, Unavailable, VoldError
from vold_client.grpc_transport import GrpcTransport
from vold_client.http_transport import HttpTransport
from vold_client.keys import KEY_REFUSED, ApiKey, KeySource
from vold_client.methods import Method, Reply, Request
from vold_client.replicas import Replicas, Throttled
from vold_client.tls import Tls
from vold_client.transport import CallContext, RequestStream, Transport
from vold_client.types import Quota
from vold_client.urls import Address, parse_urls

PROBE_SECONDS = 5.0
"""The timeout of one readiness probe."""

PROBE_INTERVAL = 0.2


class AsyncClient:
    """Connections open with the first call. The client then belongs to the event loop of that call."""

    _quota_method: ClassVar[Method[quota_pb2.GetQuotaRequest, quota_pb2.Quota]]

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: KeySource = None,
        tls: Tls | None = None,
        run_id: str = "",
        throttled: Throttled | None = None,
    ) -> None:
        self._addresses = parse_urls(urls)
        self._timeout = check_timeout(timeout)
        if retries < 0:
            raise InvalidArgument(f"retries is {retries}: give 0 or more", field="retries")
        self._retries = retries
        self._api_key = ApiKey(api_key)
        self._throttled = throttled
        if tls is not None and tls != Tls() and not any(address.tls for address in self._addresses):
            listed = ", ".join(self.urls)
            raise InvalidArgument(f"tls is set, but {listed} is plain text: write grpcs:// or https://", field="tls")
        self._tls = tls or Tls()
        self._run_id = run_id
        self._replicas: Replicas | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def urls(self) -> list[str]:
        return [address.url for address in self._addresses]

    async def ready(
        self, timeout: float = 60.0, *, every: bool = True, waiting: Callable[[VoldError], None] | None = None
    ) -> None:
        """Wait until every replica, or with `every` False any replica, reports that it accepts requests.

        waiting: called with the reason whenever a replica is not ready yet.

        Raises Unavailable, with the URL and the last reason, after `timeout` seconds. An error that a retry does not
        help (a service of another kind, a refused API key) is raised at once; with `every` False only if all replicas
        have failed.
        """
        end = Deadline.start(timeout).at
        replicas = self._open().replicas
        if not every:
            await _first_success([self._wait_ready(each.transport, timeout, end, waiting) for each in replicas])
            return
        for replica in replicas:
            await self._wait_ready(replica.transport, timeout, end, waiting)

    async def _wait_ready(
        self, transport: Transport, timeout: float, end: float, waiting: Callable[[VoldError], None] | None
    ) -> None:
        last: VoldError | None = None
        while (left := end - time.monotonic()) > 0:
            key = self._api_key.value
            try:
                await transport.check_ready(min(left, PROBE_SECONDS))
            except KEY_REFUSED:
                if not self._api_key.renew(key):
                    raise
            except VoldError as error:
                if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
                    raise
                last = error
                if waiting is not None:
                    waiting(error)
                await asyncio.sleep(min(PROBE_INTERVAL, max(0.0, end - time.monotonic())))
            else:
                return
        reason = last.message if last is not None else "no answer"
        raise Unavailable(f"not ready within {timeout:g} s: {reason}", url=transport.address.url)

    async def quota(self, *, timeout: float | None = None) -> Quota:
        """The limits of the key's tenant, and how much of them is used. With several replicas, those of one of them:
        each replica counts for itself. Raises NotFound if the service is of a version that does not tell.
        """
        reply, _ = await self._unary(self._quota_method, quota_pb2.GetQuotaRequest(), self._deadline(timeout))
        return Quota(
            tenant=reply.tenant,
            tokens_per_minute=reply.tokens_per_minute if reply.HasField("tokens_per_minute") else None,
            max_concurrent=reply.max_concurrent if reply.HasField("max_concurrent") else None,
            max_sequence=reply.max_sequence if reply.HasField("max_sequence") else None,
            tokens_left=reply.tokens_left if reply.HasField("tokens_left") else None,
            running=reply.running,
            refused=reply.refused,
        )

    async def aclose(self) -> None:
        """Close the connections. Calls in flight fail, and the client cannot be used again."""
        self._closed = True
        if self._replicas is not None:
            replicas, self._replicas = self._replicas, None
            await replicas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> Replicas:
        if self._closed:
            raise RuntimeError("this client is closed: create a new client")
        loop = asyncio.get_running_loop()
        if self._replicas is None:
            self._loop = loop
            transports = [self._connect(address) for address in self._addresses]
            self._replicas = Replicas(transports, self._retries, api_key=self._api_key, throttled=self._throttled)
        elif self._loop is not loop:
            raise RuntimeError(
                "this client belongs to another event loop: create a client for each loop, or use the sync client"
            )
        return self._replicas

    def _connect(self, address: Address) -> Transport:
        return (HttpTransport if address.http else GrpcTransport)(address, self._api_key, self._tls)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.start(self._timeout if timeout is None else timeout)

    def _context(self, seconds: float, request_id: str) -> CallContext:
        return CallContext(seconds, request_id, self._run_id)

    async def _unary(self, method: Method[Request, Reply], message: Request, deadline: Deadline) -> tuple[Reply, str]:
        """The reply, and the URL of the replica that sent it."""
        request_id = new_request_id()

        async def send(transport: Transport, seconds: float) -> tuple[Reply, str]:
            reply = await transport.unary(method, message, self._context(seconds, request_id))
            return reply, transport.address.url

        return await self._open().call(send, deadline)


async def _first_success(probes: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Return when the first probe succeeds. Raises the last error if all fail."""
    tasks = [asyncio.create_task(probe) for probe in probes]
    try:
        for remaining, completed in zip(range(len(tasks) - 1, -1, -1), asyncio.as_completed(tasks), strict=True):
            try:
                await completed
            except VoldError:
                if not remaining:
                    raise
            else:
                return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class RequestStreams:
    """The open streams of one streaming call: at most one per replica, opened on first use."""

    def __init__(self, method: Method[Request, Reply], id_field: str, run_id: str) -> None:
        self._method = method
        self._id_field = id_field
        self._run_id = run_id
        self._open: dict[int, RequestStream] = {}
        self._replaced: list[RequestStream] = []

    async def call(
        self, transport: Transport, message: Request, seconds: float, send_alone: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        """The reply to `message` on the stream to this replica. send_alone: sends the message without a stream: over
        HTTP, and to learn why the service refuses the stream.
        """
        stream = await self._get(transport)
        if stream is None:
            return await send_alone()
        try:
            reply: Reply = await stream.call(message, seconds)
        except Unavailable:
            if not stream.lost_refusal:
                raise
            return await send_alone()
        return reply

    async def _get(self, transport: Transport) -> RequestStream | None:
        """The stream to this replica, opened again if it is broken or has an old API key; None for HTTP, which has no
        streams.
        """
        stream = self._open.get(id(transport))
        if stream is not None and stream.broken:
            await stream.aclose()
            stream = None
        elif stream is not None and stream.has_old_key:
            self._replaced.append(stream)  # requests that it has accepted are still answered on it
            stream = None
        if stream is None:
            stream = transport.request_stream(self._method, self._id_field, self._run_id)
            if stream is not None:
                self._open[id(transport)] = stream
        return stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(stream.aclose() for stream in (*self._open.values(), *self._replaced)))


def new_request_id() -> str:
    return uuid.uuid4().hex[:16]
