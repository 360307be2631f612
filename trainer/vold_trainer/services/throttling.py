"""Calls that a service refuses for now: over a quota, over the requests at a time, or because its queue is full.

Such a refusal has a retry delay. The call waits and is sent again until it is answered, so that a run that is throttled
is slower and loses no score. A refusal without a retry delay, which no wait helps, is not waited for.
"""

import asyncio
import math
import time
from collections.abc import Sequence

from rich.markup import escape
from vold_client import ResourceExhausted

from vold_trainer.services.notices import FIRST_REMINDER, print_notice
from vold_trainer.services.outages import InterruptedWaitError, Outages

STOP_CHECK_SECONDS = 1.0
"""Seconds between two looks at a stop request."""


class Throttling:
    """The calls of one service that wait. `wait` is the client's `throttled`; use it on the client's event loop.

    A notice is printed at the first refusal, and again when the throttled time has doubled: a run that is faster than
    its quota is refused in every step.
    """

    def __init__(self, key: str, urls: Sequence[str], outages: Outages) -> None:
        """key: of the service in the config. outages: where the state shows and the spans go."""
        self.service = f"{key} {', '.join(urls)}"
        self.outages = outages
        self.refusals = 0
        self._next_tries: dict[int, float] = {}
        self._next_try = math.inf
        self._since = 0.0
        self._ended_seconds = 0.0
        self._next_notice = 0.0
        outages.throttled[key] = self.state

    def state(self) -> str:
        """When a waiting call is sent again; "" if none waits. Thread-safe."""
        next_try = self._next_try
        if next_try == math.inf:
            return ""
        return f"throttled, next try in {max(0, math.ceil(next_try - time.monotonic()))} s"

    async def wait(self, error: ResourceExhausted, seconds: float) -> None:
        """Wait `seconds`. Raises InterruptedWaitError if the run is asked to stop meanwhile."""
        self.refusals += 1
        number, until = self.refusals, time.monotonic() + seconds
        if not self._next_tries:
            self._since = time.monotonic()
        self._set_next_try(number, until)
        try:
            while (left := until - time.monotonic()) > 0:
                self._notify(error)
                if self.outages.stop_requested():
                    raise InterruptedWaitError(f"the run was asked to stop while {self.service} throttled it")
                await asyncio.sleep(min(left, STOP_CHECK_SECONDS))
        finally:
            self._set_next_try(number, None)
            if not self._next_tries:
                self._ended_seconds += time.monotonic() - self._since
                self.outages.add_span("throttled", self._since)

    def _set_next_try(self, number: int, until: float | None) -> None:
        if until is None:
            del self._next_tries[number]
        else:
            self._next_tries[number] = until
        self._next_try = min(self._next_tries.values(), default=math.inf)

    def _notify(self, error: ResourceExhausted) -> None:
        throttled = self._ended_seconds + time.monotonic() - self._since
        if throttled < self._next_notice:
            return
        if not self._next_notice:
            text = "throttles calls: they wait and are sent again until they are answered, and nothing is missing"
        else:
            text = f"has throttled calls for {throttled:.0f} s in all; nothing is missing"
        self._next_notice = max(FIRST_REMINDER, 2 * throttled)
        print_notice(f"[yellow]{escape(self.service)} {text}: {escape(error.message)}")
