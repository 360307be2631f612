"""Replicas of one upstream server: which one takes a request, when one is left out, and when it is back.

A request goes to the replica with the fewest tokens outstanding. A replica that breaks a connection, or that does not
answer its health check three times, is left out; its requests are asked of the others. It is back once it is healthy
and gives a fixed probe the scores that it had before.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, unavailable

log = logging.getLogger("vold.teacher.upstream")

Json = dict[str, Any]

HEALTH_FAILURES = 3
REQUESTS_PER_REPLICA = 64
MAX_PAUSE = 5.0
"""Seconds before a busy server is asked again, whatever it says."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """timeout_seconds: for a whole answer. health_seconds: between two health checks, and for each of them."""

    timeout_seconds: float = 600.0
    health_seconds: float = 5.0
    probe_seconds: float = 60.0


@dataclass(slots=True, eq=False)
class Replica:
    """tokens: of the requests that it has. why: it is left out; empty while it takes requests."""

    url: str
    client: httpx.AsyncClient
    tokens: int = 0
    why: str = "not asked yet"
    failures: int = 0
    running: set[asyncio.Task[httpx.Response]] = field(default_factory=set)

    @property
    def up(self) -> bool:
        return not self.why

    async def get(self, path: str) -> Json:
        """Raises ServiceError, as `read` does."""
        try:
            return read(await self.client.get(path), self.url)
        except httpx.HTTPError as error:
            raise gone(self.url, error) from error

    async def post(self, path: str, body: Json, tokens: int = 0) -> Json:
        try:
            return read(await self.client.post(path, json=body), self.url)
        except httpx.HTTPError as error:
            raise gone(self.url, error) from error


Check = Callable[[Replica], Awaitable[str]]
"""Why a healthy replica must not take requests, or ""."""


class Pool:
    """Every method runs on one event loop. `start`, then `post` and `stream`."""

    def __init__(self, urls: list[str], key: str, limits: PoolLimits, *, check: Check) -> None:
        """key: of the upstream servers, or "". check: asked of a replica before it takes requests, and now and then."""
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
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Ask every replica once and begin to watch them. Raises OSError where none can be used."""
        for _ in range(HEALTH_FAILURES):
            await asyncio.gather(*(self._look(replica) for replica in self.replicas))
            if any(replica.up for replica in self.replicas):
                break
        if not any(replica.up for replica in self.replicas):
            reasons = "; ".join(f"{replica.url}: {replica.why}" for replica in self.replicas)
            raise OSError(f"no upstream server can be used: {reasons}")
        self._watchers = [asyncio.create_task(self._watch(replica)) for replica in self.replicas]

    async def stop(self) -> None:
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*(replica.client.aclose() for replica in self.replicas))

    async def post(self, path: str, body: Json, tokens: int) -> Json:
        """The answer of whichever replica gives one, waiting while all are busy.

        Raises ServiceError: UNAVAILABLE where none is left, or none had room in `PoolLimits.timeout_seconds`.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.timeout_seconds
        async with self._room:
            while True:
                tried: set[Replica] = set()
                error = self._none_left()
                while replica := self._least_loaded(tried):
                    tried.add(replica)
                    try:
                        with self._counted(replica, tokens):
                            return read(await self._send(replica, path, body), replica.url)
                    except ServiceError as fault:
                        if fault.code != status_pb2.UNAVAILABLE:
                            raise
                        error = fault
                if loop.time() > end or not any(replica.up for replica in self.replicas):
                    raise error
                await asyncio.sleep(min(error.retry_seconds, MAX_PAUSE))

    async def stream(self, path: str, body: Json, tokens: int) -> AsyncIterator[Json]:
        """Server-sent events of one replica. Nothing is asked twice once the first event is out."""
        async with self._room:
            replica = self._least_loaded(set())
            if replica is None:
                raise self._none_left()
            try:
                with self._counted(replica, tokens):
                    async with replica.client.stream("POST", path, json=body) as response:
                        if response.status_code != 200:
                            await response.aread()
                            read(response, replica.url)
                        async for line in response.aiter_lines():
                            data = line.removeprefix("data:").strip()
                            if line.startswith("data:") and data != "[DONE]":
                                yield _object(data, replica.url)
            except httpx.HTTPError as error:
                self._eject(replica, str(error) or type(error).__name__)
                raise gone(replica.url, error) from error

    def _least_loaded(self, tried: set[Replica]) -> Replica | None:
        left = [replica for replica in self.replicas if replica.up and replica not in tried]
        return min(left, key=lambda replica: replica.tokens, default=None)

    @contextlib.contextmanager
    def _counted(self, replica: Replica, tokens: int) -> Iterator[None]:
        replica.tokens += tokens
        try:
            yield
        finally:
            replica.tokens -= tokens

    def _none_left(self) -> ServiceError:
        urls = ", ".join(replica.url for replica in self.replicas)
        return unavailable(f"no upstream server answers at {urls}: try again", self.limits.health_seconds)

    async def _send(self, replica: Replica, path: str, body: Json) -> httpx.Response:
        """As a task of its own, so that leaving the replica out ends what still waits for it."""
        task = asyncio.ensure_future(replica.client.post(path, json=body))
        replica.running.add(task)
        try:
            await asyncio.wait({task})
        finally:
            replica.running.discard(task)
            task.cancel()  # where this caller left; a finished task does not mind
        if task.cancelled():
            raise unavailable(f"{replica.url} was left out while it worked: {replica.why}")
        try:
            return task.result()
        except httpx.HTTPError as error:
            self._eject(replica, str(error) or type(error).__name__)
            raise gone(replica.url, error) from error

    def _eject(self, replica: Replica, why: str) -> None:
        if replica.up:
            log.warning("upstream %s is left out: %s", replica.url, why)
        replica.why = why
        for task in list(replica.running):
            task.cancel()

    async def _watch(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        checked = loop.time()
        while True:
            await asyncio.sleep(self.limits.health_seconds)
            due = loop.time() - checked > self.limits.probe_seconds
            if not replica.up or due:
                checked = loop.time()
                await self._look(replica)
            elif why := await self._unhealthy(replica):
                replica.failures += 1
                if replica.failures >= HEALTH_FAILURES:
                    self._eject(replica, why)
            else:
                replica.failures = 0

    async def _look(self, replica: Replica) -> None:
        """Let a replica in, or leave it out, by its health and its probe."""
        why = await self._unhealthy(replica)
        if why and replica.up:
            return  # its health check counts failures
        try:
            why = why or await asyncio.wait_for(self._check(replica), self.limits.timeout_seconds)
        except ServiceError as error:
            if replica.up and error.code == status_pb2.UNAVAILABLE:
                return  # busy, which is no reason
            why = error.message
        except TimeoutError:
            why = f"no answer to a probe in {self.limits.timeout_seconds:g} s"
        if why:
            self._eject(replica, why)
        elif not replica.up:
            log.info("upstream %s takes requests", replica.url)
            replica.why, replica.failures = "", 0

    async def _unhealthy(self, replica: Replica) -> str:
        try:
            response = await replica.client.get("/health", timeout=self.limits.health_seconds)
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__
        return "" if response.status_code == 200 else f"/health answers {response.status_code}"


def gone(url: str, error: Exception) -> ServiceError:
    return unavailable(f"{url} does not answer: {str(error) or type(error).__name__}")


def read(response: httpx.Response, url: str) -> Json:
    """The JSON object of an answer, or what its status means for the caller, as ServiceError."""
    status = response.status_code
    if status == 200:
        return _object(response.text, url)
    said = _message(response)
    if status in (401, 403):
        raise ServiceError(
            status_pb2.INTERNAL,
            f"{url} refuses this server's key ({status}): set the variable that --upstream-key-env names",
        )
    if status in (429, 502, 503, 504):
        after = response.headers.get("retry-after", "")
        raise unavailable(f"{url} takes no more now ({status}): {said}", float(after) if after.isdigit() else 1.0)
    code = status_pb2.INTERNAL if status >= 500 else status_pb2.INVALID_ARGUMENT
    if status == 404:
        code = status_pb2.NOT_FOUND
    raise ServiceError(code, f"the upstream server refused it ({status}): {said}")


def _object(text: str, url: str) -> Json:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ServiceError(status_pb2.INTERNAL, f"{url} answered with something that is not JSON") from error
    if isinstance(found, Mapping):
        return dict(found)
    raise ServiceError(status_pb2.INTERNAL, f"{url} answered with a {type(found).__name__}, not an object")


def _message(response: httpx.Response) -> str:
    """What the server said, at most a few hundred characters of it."""
    try:
        body = response.json()
        error = body.get("error", body)
        said = error.get("message", error) if isinstance(error, Mapping) else error
    except (ValueError, AttributeError):
        said = response.text
    return str(said)[:300]
