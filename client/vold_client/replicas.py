"""The replicas of one service: which is asked next, and when a failed call is tried again."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from vold_client.concurrency import Deadline
from vold_client.errors import RETRIED, Unavailable, VoldError, again
from vold_client.transport import Transport

T = TypeVar("T")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
"""Seconds. Before retry k a call waits a random share of FIRST_PAUSE * 2**k, at most LONGEST_PAUSE: "full jitter",
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/."""

FIRST_REST = 1.0
LONGEST_REST = 30.0
"""Seconds for which an unavailable replica is passed over, doubled each time that it fails again."""


@dataclass(slots=True)
class Replica:
    """One transport, and until when (on time.monotonic()'s clock) it is passed over."""

    transport: Transport
    resting_until: float = 0.0
    failures: int = 0

    def failed(self, error: VoldError) -> None:
        now = time.monotonic()
        rest = max(error.retry_seconds, FIRST_PAUSE)
        if isinstance(error, Unavailable) and now >= self.resting_until:
            # Calls in flight fail together; only the first of them makes the rest longer.
            rest = max(rest, min(FIRST_REST * 2**self.failures, LONGEST_REST))
            self.failures += 1
        self.resting_until = max(self.resting_until, now + rest)

    def answered(self) -> None:
        self.failures = 0
        self.resting_until = 0.0


class Replicas:
    """Calls go round robin. One that is unavailable, or full, rests for a while, and the call goes on at the next one
    at once; where none is free the call waits and tries again, `retries` times in all and never past its deadline.
    """

    def __init__(self, transports: list[Transport], retries: int) -> None:
        self.replicas = [Replica(transport) for transport in transports]
        self._attempts = retries + len(transports)  # going on to another replica is no retry
        self._next = 0

    async def call(self, work: Callable[[Transport, float], Awaitable[T]], deadline: Deadline) -> T:
        """`work(transport, seconds left)` on one replica after another until it succeeds.

        Raises what `work` raised last.
        """

        def stop(state: RetryCallState) -> bool:
            return state.attempt_number >= self._attempts or time.monotonic() + state.upcoming_sleep >= deadline.at

        attempts = 0
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(RETRIED), wait=self._pause, stop=stop, reraise=True
            ):
                with attempt:
                    attempts += 1
                    replica = self._choose()
                    try:
                        result = await work(replica.transport, deadline.remaining())
                    except RETRIED as error:
                        replica.failed(error)
                        raise
                    replica.answered()
                    return result
        except RETRIED as error:
            if attempts > 1:
                raise again(error, message=f"{error.message}; given up after {attempts} attempts") from None
            raise
        raise AssertionError("a retry loop ends with a result or an error")

    async def aclose(self) -> None:
        await asyncio.gather(*(replica.transport.aclose() for replica in self.replicas))

    def _choose(self) -> Replica:
        """The next one in turn that is not resting; where all rest, the one that has rested enough first."""
        now = time.monotonic()
        in_turn = self.replicas[self._next :] + self.replicas[: self._next]
        replica = min(in_turn, key=lambda replica: max(replica.resting_until, now))
        self._next = (self.replicas.index(replica) + 1) % len(self.replicas)
        return replica

    def _pause(self, state: RetryCallState) -> float:
        now = time.monotonic()
        if any(replica.resting_until <= now for replica in self.replicas):
            return 0.0
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_seconds if isinstance(error, VoldError) else 0.0
        backoff = min(FIRST_PAUSE * 2 ** max(0, state.attempt_number - len(self.replicas)), LONGEST_PAUSE)
        return asked + random.uniform(0.0, backoff)
