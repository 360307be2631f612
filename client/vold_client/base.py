"""What the clients of both services share: opening, readiness, deadlines, closing."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from vold_client.concurrency import Deadline, check_timeout
from vold_client.errors import InvalidArgument, Unavailable, VoldError
from vold_client.grpc_transport import GrpcTransport
from vold_client.http_transport import HttpTransport
from vold_client.methods import Method, Reply, Request
from vold_client.replicas import Replicas
from vold_client.tls import Tls
from vold_client.transport import CallContext, Exchange, Transport
from vold_client.urls import Address, parse_urls

PROBE_SECONDS = 5.0
"""How long one readiness probe may take."""

PROBE_PAUSE = 0.2


class AsyncClient:
    """Connections open on the first call, in the event loop that makes it; a client belongs to that loop."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: str | None = None,
        tls: Tls | None = None,
        run_id: str = "",
    ) -> None:
        self._addresses = parse_urls(urls)
        self._timeout = check_timeout(timeout)
        if retries < 0:
            raise InvalidArgument(f"retries is {retries}: give 0 or more", field="retries")
        self._retries = retries
        self._api_key = api_key
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

    async def ready(self, timeout: float = 60.0, *, every: bool = True) -> None:
        """Wait until every replica, or with `every` False one of them, says that it takes work.

        Raises Unavailable, with the URL and the last reason, where that is not so within `timeout` seconds; what no
        waiting mends (a service of another kind, a refused API key) is raised at once, or where one replica is enough
        when none is left to wait for.
        """
        end = Deadline.start(timeout).at
        replicas = self._open().replicas
        if not every:
            await _first([_wait_ready(replica.transport, timeout, end) for replica in replicas])
            return
        for replica in replicas:
            await _wait_ready(replica.transport, timeout, end)

    async def aclose(self) -> None:
        """Close the connections. Calls in flight fail; the client cannot be used again."""
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
            raise RuntimeError("this client is closed: make another one")
        loop = asyncio.get_running_loop()
        if self._replicas is None:
            self._loop = loop
            self._replicas = Replicas([self._connect(address) for address in self._addresses], self._retries)
        elif self._loop is not loop:
            raise RuntimeError("this client belongs to another event loop: make one for each, or use the sync client")
        return self._replicas

    def _connect(self, address: Address) -> Transport:
        return (HttpTransport if address.http else GrpcTransport)(address, self._api_key, self._tls)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.start(self._timeout if timeout is None else timeout)

    def _context(self, seconds: float, request_id: str) -> CallContext:
        return CallContext(seconds, request_id, self._run_id)

    async def _unary(self, method: Method[Request, Reply], message: Request, deadline: Deadline) -> tuple[Reply, str]:
        """The reply, and the URL that gave it."""
        request_id = new_request_id()

        async def work(transport: Transport, seconds: float) -> tuple[Reply, str]:
            reply = await transport.unary(method, message, self._context(seconds, request_id))
            return reply, transport.address.url

        return await self._open().call(work, deadline)


async def _wait_ready(transport: Transport, timeout: float, end: float) -> None:
    last: VoldError | None = None
    while (left := end - time.monotonic()) > 0:
        try:
            await transport.check_ready(min(left, PROBE_SECONDS))
        except VoldError as error:
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
                raise
            last = error
            await asyncio.sleep(min(PROBE_PAUSE, max(0.0, end - time.monotonic())))
        else:
            return
    reason = last.message if last is not None else "no answer"
    raise Unavailable(f"not ready within {timeout:g} s: {reason}", url=transport.address.url)


async def _first(probes: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Return with the first that succeeds; raises what the last of them raised where none does."""
    tasks = [asyncio.create_task(probe) for probe in probes]
    try:
        for left, done in zip(range(len(tasks) - 1, -1, -1), asyncio.as_completed(tasks), strict=True):
            try:
                await done
            except VoldError:
                if not left:
                    raise
            else:
                return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Exchanges:
    """The open streams of one streaming call: at most one to a replica, opened when first needed."""

    def __init__(self, method: Method[Request, Reply], key: str, run_id: str) -> None:
        self._method = method
        self._key = key
        self._run_id = run_id
        self._open: dict[int, Exchange] = {}

    async def to(self, transport: Transport) -> Exchange | None:
        """The stream to this replica; None where its wire has none."""
        known = self._open.get(id(transport))
        if known is not None and known.broken:
            await known.aclose()
            known = None
        if known is None:
            known = transport.exchange(self._method, self._key, self._run_id)
            if known is not None:
                self._open[id(transport)] = known
        return known

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(exchange.aclose() for exchange in self._open.values()))


def new_request_id() -> str:
    return uuid.uuid4().hex[:16]
