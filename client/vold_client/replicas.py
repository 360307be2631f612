"""The replicas of one service: which one serves the next call, and when a failed call is retried."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from vold_client.concurrency import Deadline
from vold_client.errors import RETRYABLE, ResourceExhausted, Unavailable, VoldError, copy_error
from vold_client.keys import KEY_REFUSED, ApiKey
from vold_client.transport import Transport

T = TypeVar("T")

Throttled = Callable[[ResourceExhausted, float], Awaitable[None]]
"""Waits in place of the client before a call is sent again that the service refuses for now: called with the refusal,
which has the service's retry delay, and the seconds to wait. An exception ends the call."""

MIN_BACKOFF = 0.5
MAX_BACKOFF = 10.0
"""Seconds. Before retry k a call waits a random share of MIN_BACKOFF * 2**k, at most MAX_BACKOFF: "full jitter",
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/."""

_JITTER = random.SystemRandom()
"""Not the global generator: runs that seed it alike would retry in step."""

MIN_COOLDOWN = 1.0
MAX_COOLDOWN = 30.0
"""Seconds without calls for an unavailable replica; doubled with each further failure."""


@dataclass(slots=True)
class Replica:
    """One transport. cooldown_until: until then (on time.monotonic()'s clock) other replicas come first."""

    transport: Transport
    cooldown_until: float = 0.0
    failures: int = 0

    def record_failure(self, error: VoldError) -> None:
        now = time.monotonic()
        cooldown = max(error.retry_seconds, MIN_BACKOFF)
        if isinstance(error, Unavailable) and now >= self.cooldown_until:
            # Calls in flight fail together; only the first of them doubles the cooldown.
            cooldown = max(cooldown, min(MIN_COOLDOWN * 2**self.failures, MAX_COOLDOWN))
            self.failures += 1
        self.cooldown_until = max(self.cooldown_until, now + cooldown)

    def record_success(self) -> None:
        self.failures = 0
        self.cooldown_until = 0.0


class Replicas:
    """Calls go to the replicas round robin.

    A replica that is unavailable or full gets a cooldown, and the call goes to the next replica at once. If all
    replicas have a cooldown, the call waits and retries, `retries` times in all and never past its deadline. With
    `throttled`, a refusal with a retry delay is waited for however often and long it takes: neither `retries` nor the
    deadline counts it.
    """

    def __init__(
        self, transports: list[Transport], retries: int, *, api_key: ApiKey, throttled: Throttled | None = None
    ) -> None:
        self.replicas = [Replica(transport) for transport in transports]
        self._api_key = api_key
        self._throttled = throttled
        self._attempts = retries + len(transports)  # the first attempt at another replica is no retry
        self._next = 0

    async def call(self, work: Callable[[Transport, float], Awaitable[T]], deadline: Deadline) -> T:
        """The result of `work(transport, seconds left)`, tried on one replica after another until it succeeds.

        Raises the last error of `work`.
        """

        def stop(state: RetryCallState) -> bool:
            return state.attempt_number >= self._attempts or time.monotonic() + state.upcoming_sleep >= deadline.at

        attempts = 0
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(RETRYABLE), wait=self._backoff, stop=stop, reraise=True
            ):
                with attempt:
                    attempts += 1
                    return await self._attempt(work, deadline)
        except RETRYABLE as error:
            if attempts > 1:
                raise copy_error(error, message=f"{error.message}; given up after {attempts} attempts") from None
            raise
        raise AssertionError("a retry loop ends with a result or an error")

    async def _attempt(self, work: Callable[[Transport, float], Awaitable[T]], deadline: Deadline) -> T:
        """The result of `work` on the next replica. A call that is throttled, or whose key the service refuses while
        there is another key, is sent again within the attempt.
        """
        refusals = 0
        while True:
            replica, key = self._next_replica(), self._api_key.value
            try:
                result = await work(replica.transport, deadline.remaining())
            except RETRYABLE as error:
                replica.record_failure(error)
                if self._throttled is None or not isinstance(error, ResourceExhausted) or not error.retry_seconds:
                    raise
                refusals += 1
                if seconds := self._pause(error, refusals):
                    with deadline.paused():
                        await self._throttled(error, seconds)
            except KEY_REFUSED:
                if not self._api_key.renew(key):
                    raise
            else:
                replica.record_success()
                return result

    async def aclose(self) -> None:
        await asyncio.gather(*(replica.transport.aclose() for replica in self.replicas))

    def _next_replica(self) -> Replica:
        """The next replica in turn without a cooldown; if all have one, the replica whose cooldown ends first."""
        now = time.monotonic()
        in_turn = self.replicas[self._next :] + self.replicas[: self._next]
        replica = min(in_turn, key=lambda replica: max(replica.cooldown_until, now))
        self._next = (self.replicas.index(replica) + 1) % len(self.replicas)
        return replica

    def _backoff(self, state: RetryCallState) -> float:
        """Seconds until the next attempt."""
        return self._pause(state.outcome.exception() if state.outcome is not None else None, state.attempt_number)

    def _pause(self, error: BaseException | None, failures: int) -> float:
        """Seconds until the call is sent again after its last `failures` ended with `error`."""
        now = time.monotonic()
        if any(replica.cooldown_until <= now for replica in self.replicas):
            return 0.0
        retry_seconds = error.retry_seconds if isinstance(error, VoldError) else 0.0
        backoff = min(MIN_BACKOFF * 2 ** min(max(0, failures - len(self.replicas)), 10), MAX_BACKOFF)
        return retry_seconds + _JITTER.uniform(0.0, backoff)
