"""Replicas of one upstream server: chooses a replica for each request, ejects failed replicas and readmits them.

A request goes to the replica with the fewest tokens under way. A replica is ejected if it breaks a connection or fails
its health check three times; its requests go to the others. It is readmitted when it is healthy and scores a fixed
probe as before.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from vold_proto.proxies import proxy_remedy
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, unavailable

log = logging.getLogger("vold.teacher.upstream")

Json = dict[str, Any]

HEALTH_FAILURES = 3
REQUESTS_PER_REPLICA = 64
MAX_PAUSE = 5.0
"""The longest wait before a busy server gets the request again, in seconds."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """timeout_seconds: for a whole reply. health_seconds: between two health checks, and for each of them."""

    timeout_seconds: float = 600.0
    health_seconds: float = 5.0
    probe_seconds: float = 60.0


@dataclass(slots=True, eq=False)
class Replica:
    """tokens: of its requests under way. down_reason: why it takes no requests; "" while it takes them."""

    url: str
    client: httpx.AsyncClient
    tokens: int = 0
    down_reason: str = "not checked yet"
    failures: int = 0
    running: set[asyncio.Task[httpx.Response]] = field(default_factory=set)

    @property
    def up(self) -> bool:
        return not self.down_reason

    async def get(self, path: str) -> Json:
        """Raises ServiceError, see `read_json`."""
        try:
            return read_json(await self.client.get(path), self.url)
        except httpx.HTTPError as error:
            raise unreachable(self.url, error) from error

    async def post(self, path: str, body: Json, tokens: int = 0) -> Json:
        try:
            return read_json(await self.client.post(path, json=body), self.url)
        except httpx.HTTPError as error:
            raise unreachable(self.url, error) from error


Check = Callable[[Replica], Awaitable[str]]
"""Returns why a healthy replica must not take requests, or ""."""


class Pool:
    """The replicas. All methods run on one event loop; call `start` before `post` and `stream`."""

    def __init__(self, urls: list[str], key: str, limits: PoolLimits, *, check: Check) -> None:
        """key: API key of the upstream servers, or "". check: runs before a replica takes requests, and regularly."""
        self.limits = limits
        self._check = check
        timeout = httpx.Timeout(limits.timeout_seconds, connect=min(5.0, limits.timeout_seconds), pool=None)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        connections = httpx.Limits(max_connections=None, max_keepalive_connections=REQUESTS_PER_REPLICA)
        self.replicas = [
            Replica(url, httpx.AsyncClient(base_url=url, timeout=timeout, headers=headers, limits=connections))
            for url in urls
        ]
        self._room = asyncio.Semaphore(REQUESTS_PER_REPLICA * len(urls))
        self._monitors: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Check every replica and start to monitor them. Raises OSError if none can be used."""
        for _ in range(HEALTH_FAILURES):
            await asyncio.gather(*(self._check_replica(replica) for replica in self.replicas))
            if any(replica.up for replica in self.replicas):
                break
        if not any(replica.up for replica in self.replicas):
            reasons = "; ".join(f"{replica.url}: {replica.down_reason}" for replica in self.replicas)
            raise OSError(f"no upstream server can be used: {reasons}")
        self._monitors = [asyncio.create_task(self._monitor(replica)) for replica in self.replicas]

    async def stop(self) -> None:
        for task in self._monitors:
            task.cancel()
        await asyncio.gather(*(replica.client.aclose() for replica in self.replicas))

    async def post(self, path: str, body: Json, tokens: int) -> Json:
        """The reply of the first replica that takes the request; waits while all are busy.

        Raises ServiceError: UNAVAILABLE if all are down, or stay busy for `PoolLimits.timeout_seconds`.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.timeout_seconds
        async with self._room:
            while True:
                tried: set[Replica] = set()
                error = self._all_down()
                while replica := self._least_loaded(tried):
                    tried.add(replica)
                    try:
                        with self._count_tokens(replica, tokens):
                            return read_json(await self._send(replica, path, body), replica.url)
                    except ServiceError as fault:
                        if fault.code != status_pb2.UNAVAILABLE:
                            raise
                        error = fault
                if loop.time() > end or not any(replica.up for replica in self.replicas):
                    raise error
                await asyncio.sleep(min(error.retry_seconds, MAX_PAUSE))

    async def stream(self, path: str, body: Json, tokens: int) -> AsyncIterator[Json]:
        """Server-sent events of one replica. A failed stream is not sent to another replica."""
        async with self._room:
            replica = self._least_loaded(set())
            if replica is None:
                raise self._all_down()
            try:
                with self._count_tokens(replica, tokens):
                    async with replica.client.stream("POST", path, json=body) as response:
                        if response.status_code != 200:
                            await response.aread()
                            read_json(response, replica.url)
                        async for line in response.aiter_lines():
                            data = line.removeprefix("data:").strip()
                            if line.startswith("data:") and data != "[DONE]":
                                yield _object(data, replica.url)
            except httpx.HTTPError as error:
                self._eject(replica, str(error) or type(error).__name__)
                raise unreachable(replica.url, error) from error

    def _least_loaded(self, tried: set[Replica]) -> Replica | None:
        untried = [replica for replica in self.replicas if replica.up and replica not in tried]
        return min(untried, key=lambda replica: replica.tokens, default=None)

    @contextlib.contextmanager
    def _count_tokens(self, replica: Replica, tokens: int) -> Iterator[None]:
        replica.tokens += tokens
        try:
            yield
        finally:
            replica.tokens -= tokens

    def _all_down(self) -> ServiceError:
        urls = ", ".join(replica.url for replica in self.replicas)
        return unavailable(f"no upstream server answers at {urls}: try again", self.limits.health_seconds)

    async def _send(self, replica: Replica, path: str, body: Json) -> httpx.Response:
        """Post in a task of its own, so that ejecting the replica ends its requests."""
        task = asyncio.ensure_future(replica.client.post(path, json=body))
        replica.running.add(task)
        try:
            await asyncio.wait({task})
        finally:
            replica.running.discard(task)
            task.cancel()  # if this caller was cancelled; no effect on a finished task
        if task.cancelled():
            raise unavailable(f"{replica.url} was left out while it worked: {replica.down_reason}")
        try:
            return task.result()
        except httpx.HTTPError as error:
            self._eject(replica, str(error) or type(error).__name__)
            raise unreachable(replica.url, error) from error

    def _eject(self, replica: Replica, why: str) -> None:
        if replica.up:
            log.warning("upstream %s is left out: %s", replica.url, why)
        replica.down_reason = why
        for task in list(replica.running):
            task.cancel()

    async def _monitor(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        checked = loop.time()
        while True:
            await asyncio.sleep(self.limits.health_seconds)
            due = loop.time() - checked > self.limits.probe_seconds
            if not replica.up or due:
                checked = loop.time()
                await self._check_replica(replica)
            elif why := await self._unhealthy(replica):
                replica.failures += 1
                if replica.failures >= HEALTH_FAILURES:
                    self._eject(replica, why)
            else:
                replica.failures = 0

    async def _check_replica(self, replica: Replica) -> None:
        """Admit or eject a replica by its health check and its probe."""
        why = await self._unhealthy(replica)
        if why and replica.up:
            return  # `_monitor` counts failed health checks
        try:
            why = why or await asyncio.wait_for(self._check(replica), self.limits.timeout_seconds)
        except ServiceError as error:
            if replica.up and error.code == status_pb2.UNAVAILABLE:
                return  # busy: no reason to eject it
            why = error.message
        except TimeoutError:
            why = f"no answer to a probe in {self.limits.timeout_seconds:g} s"
        if why:
            self._eject(replica, why)
        elif not replica.up:
            log.info("upstream %s takes requests", replica.url)
            replica.down_reason, replica.failures = "", 0

    async def _unhealthy(self, replica: Replica) -> str:
        try:
            response = await replica.client.get("/health", timeout=self.limits.health_seconds)
        except httpx.HTTPError as error:
            return _reason(replica.url, error)
        if response.status_code == 200:
            return ""
        return ". ".join(filter(None, (f"/health answers {response.status_code}", proxy_remedy(replica.url))))


def unreachable(url: str, error: Exception) -> ServiceError:
    return unavailable(f"{url} does not answer: {_reason(url, error)}")


def _reason(url: str, error: Exception) -> str:
    return ". ".join(filter(None, (str(error) or type(error).__name__, proxy_remedy(url))))


def read_json(response: httpx.Response, url: str) -> Json:
    """The JSON object of a reply. Raises ServiceError for a status other than 200."""
    status = response.status_code
    if status == 200:
        return _object(response.text, url)
    message = _message(response)
    if status in (401, 403):
        raise ServiceError(
            status_pb2.INTERNAL,
            f"{url} refuses this server's key ({status}): set the variable that --upstream-key-env names",
        )
    if status in (429, 502, 503, 504):
        after = response.headers.get("retry-after", "")
        raise unavailable(f"{url} takes no more now ({status}): {message}", float(after) if after.isdigit() else 1.0)
    code = status_pb2.INTERNAL if status >= 500 else status_pb2.INVALID_ARGUMENT
    if status == 404:
        code = status_pb2.NOT_FOUND
    raise ServiceError(code, f"the upstream server refused it ({status}): {message}")


def _object(text: str, url: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ServiceError(status_pb2.INTERNAL, f"{url} answered with something that is not JSON") from error
    if isinstance(value, Mapping):
        return dict(value)
    raise ServiceError(status_pb2.INTERNAL, f"{url} answered with a {type(value).__name__}, not an object")


def _message(response: httpx.Response) -> str:
    """The server's error message, at most 300 characters."""
    try:
        body = response.json()
        error = body.get("error", body)
        message = error.get("message", error) if isinstance(error, Mapping) else error
    except (ValueError, AttributeError):
        message = response.text
    return str(message)[:300]
