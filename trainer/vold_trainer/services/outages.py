"""Outages of a service: print a notice, wait until the service is ready again, and stop the run after a time limit.

If a service is unreachable, still loading or shutting down, the call is repeated once the service is back, so that an
outage loses no score. A call that exceeds its deadline counts as an outage only if the service's health check fails
too. Otherwise the call was too slow, and its scores are missing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rich.markup import escape
from rich.status import Status
from vold_client import AsyncTeacherClient, AsyncVerifierClient, DeadlineExceeded, Unavailable, VoldError

from vold_trainer.errors import RunError
from vold_trainer.terminal import console

PROBE_SECONDS = 1.0
"""Seconds that one health check of a service that is away takes; the notice is updated after each."""

FIRST_REMINDER = 10.0
"""Seconds until the notice is printed again if there is no terminal. The interval doubles each time."""

Span = tuple[str, float, float]
"""(lane, start, end), seconds on time.monotonic()'s clock."""


class ServiceGoneError(RunError):
    """A service did not come back. The student's weights are those before the current step."""


class InterruptedWaitError(RunError):
    """The run received a stop request while it waited for a service."""


@dataclass
class Outages:
    """The limits on outages, and the outages so far.

    wait: seconds for which a service may be away, `outage.wait`. stop_requested: whether the run has to stop.
    why_ended: why the services at these URLs cannot come back; "" if they can. spans: the outages that are over.
    """

    wait: float = 600.0
    stop_requested: Callable[[], bool] = bool
    why_ended: Callable[[Sequence[str]], str] = lambda urls: ""
    spans: list[Span] = field(default_factory=list)

    def take_spans(self) -> list[Span]:
        """Return the outages that ended since the last call."""
        taken, self.spans = self.spans, []
        return taken


class MonitoredService:
    """A service whose calls are repeated after an outage. Use it only on the event loop of its client."""

    def __init__(self, name: str, client: AsyncTeacherClient | AsyncVerifierClient, outages: Outages) -> None:
        self.name = name
        self.client = client
        self.outages = outages
        self.in_flight = 0
        self.last_seconds: float | None = None
        self._notice: _OutageNotice | None = None
        self._waiting: asyncio.Task[None] | None = None

    def state(self) -> str:
        """Describe the service in a line: the calls in flight and the seconds of the last call, or how long the service
        has been away. Thread-safe.
        """
        if (notice := self._notice) is not None:
            return f"away for {time.monotonic() - notice.since:.0f} s, waiting up to {notice.limit:g} s"
        last = "no request yet" if self.last_seconds is None else f"last request {self.last_seconds:.2f} s"
        return f"{self.in_flight} in flight · {last}"

    async def call(self, make: Callable[[], Awaitable[None]]) -> None:
        """Make a call, and repeat it after each outage.

        Raises the service's error about the call itself; ServiceGoneError after the limit; InterruptedWaitError.
        """
        self.in_flight += 1
        try:
            await self._call_until_answered(make)
        finally:
            self.in_flight -= 1

    async def _call_until_answered(self, make: Callable[[], Awaitable[None]]) -> None:
        while True:
            started = time.monotonic()
            try:
                await make()
            except (Unavailable, DeadlineExceeded) as error:
                if isinstance(error, DeadlineExceeded) and await self._why_not_ready(PROBE_SECONDS) is None:
                    self._end_outage()
                    raise
                await self._wait_until_ready(error)
            except (VoldError, RunError):
                self._end_outage()
                raise
            else:
                self.last_seconds = time.monotonic() - started
                self._end_outage()
                return

    async def aclose(self) -> None:
        """Cancel the wait for the service."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    async def _wait_until_ready(self, error: VoldError) -> None:
        """Return once the service is ready. All calls that failed share one wait."""
        if self._waiting is None or self._waiting.done():
            if self._notice is None:
                self._notice = _OutageNotice(self.name, self.client.urls, self.outages.wait)
            self._waiting = asyncio.create_task(self._probe_until_ready(self._notice, error))
        await asyncio.shield(self._waiting)

    async def _probe_until_ready(self, notice: "_OutageNotice", error: VoldError) -> None:
        """Probe the service until it is ready.

        An outage lasts from the first call that fails to the first call that succeeds: a service that reports ready but
        rejects calls is away as well.
        """
        try:
            while True:
                away = time.monotonic() - notice.since
                if why := self.outages.why_ended(self.client.urls):
                    raise ServiceGoneError(f"{notice.service} has ended and cannot come back: {why}")
                if self.outages.stop_requested():
                    raise InterruptedWaitError(f"the run was asked to stop while {notice.service} was away")
                if away >= self.outages.wait:
                    raise ServiceGoneError(
                        f"{notice.service} was away for {away:.0f} s, and outage.wait is {self.outages.wait:g} s: "
                        f"{error.message}"
                    )
                notice.update(error.message)
                problem = await self._why_not_ready(min(PROBE_SECONDS, self.outages.wait - away))
                if problem is None:
                    return
                error = problem
        except BaseException:
            notice.close()
            raise

    async def _why_not_ready(self, seconds: float) -> VoldError | None:
        """Return why no replica is ready, or None if a replica is. Raises an error that waiting cannot fix."""
        try:
            await self.client.ready(seconds, every=False)
        except (Unavailable, DeadlineExceeded) as error:
            return error
        return None

    def _end_outage(self) -> None:
        if self._notice is not None:
            notice, self._notice = self._notice, None
            self.outages.spans.append(("outage", notice.since, time.monotonic()))
            notice.close()
            notice.announce_end()


class _OutageNotice:
    """The message about an outage: a line that is updated on a terminal, or else a line at growing intervals."""

    def __init__(self, name: str, urls: Sequence[str], limit: float) -> None:
        self.service = f"{name} {', '.join(urls)}"
        self.since = time.monotonic()
        self.limit = limit
        self._next_reminder = 0.0
        self._status: Status | None = None

    def update(self, reason: str) -> None:
        away = time.monotonic() - self.since
        text = f"[yellow]{escape(self.service)} is away for {away:.0f} s"
        limit = f"waiting up to {self.limit:g} s, then the run saves and stops (outage.wait)"
        if self._next_reminder == 0.0:
            self._next_reminder = FIRST_REMINDER
            console.print(f"{text}: {escape(reason)}; {limit}", highlight=False, soft_wrap=True)
        elif console.is_terminal and not console.quiet:
            if self._status is None:
                self._status = console.status(text)
                self._status.start()
            self._status.update(f"{text}; {limit}")
        elif away >= self._next_reminder:
            self._next_reminder = 2 * away
            console.print(f"{text}; {limit}", highlight=False, soft_wrap=True)

    def announce_end(self) -> None:
        away = time.monotonic() - self.since
        console.print(
            f"[green]{escape(self.service)} answers again, after {away:.0f} s", highlight=False, soft_wrap=True
        )

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
