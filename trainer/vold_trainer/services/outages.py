"""Outages of a service: print a notice, wait until the service is ready again, and stop the run after a time limit.

If a service is unreachable, still loading or shutting down, or refuses the run's API key, the call is repeated once the
service is back, so that an outage loses no score. A call that exceeds its deadline counts as an outage only if the
service's health check fails too. Otherwise the call was too slow, and its scores are missing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.markup import escape
from vold_client import (
    DeadlineExceeded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    VoldError,
)
from vold_client.errors import CertificateRefused

from vold_trainer.errors import RunError
from vold_trainer.services.notices import Notice, print_notice

PROBE_SECONDS = 1.0
"""Seconds that one health check of a service that is away takes; the notice is updated after each."""

OUTAGE_ERRORS = (Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied)
"""Errors of a service that is away. Before a run begins its key has been accepted, so that a refusal is an outage too,
which ends when the key is valid again or replaced."""

MAX_SPANS = 10_000
"""Outages and throttled times that wait to be written to the timeline."""

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
    why_ended: why the services at these URLs cannot come back; "" if they can. spans: the outages and the throttled
    times that are over. throttled: the state of each service's throttled calls; "" if none waits. key_origins: where
    each service's API key is from. Both are by the service's key in the config.
    """

    wait: float = 600.0
    stop_requested: Callable[[], bool] = bool
    why_ended: Callable[[Sequence[str]], str] = lambda urls: ""
    spans: list[Span] = field(default_factory=list)
    throttled: dict[str, Callable[[], str]] = field(default_factory=dict)
    key_origins: dict[str, Callable[[], str]] = field(default_factory=dict)

    def add_span(self, lane: str, start: float) -> None:
        """Record what has ended. Their number is bounded, because without a timeline nobody takes them."""
        if len(self.spans) < MAX_SPANS:
            self.spans.append((lane, start, time.monotonic()))

    def take_spans(self) -> list[Span]:
        """Return the outages that ended since the last call."""
        taken, self.spans = self.spans, []
        return taken


class Probed(Protocol):
    """What says whether a service is up: a client of it, or whatever stands for several."""

    @property
    def urls(self) -> list[str]: ...

    async def ready(self, timeout: float, /, *, every: bool) -> None:  # noqa: ASYNC109 - as the clients have it
        """Return once the service, or with `every` False one replica, is ready. Raises VoldError."""
        ...


class MonitoredService:
    """A service whose calls are repeated after an outage. Use it only on the event loop of its client."""

    def __init__(self, name: str, client: Probed, outages: Outages) -> None:
        self.name = name
        self.client = client
        self.outages = outages
        self.in_flight = 0
        self.last_seconds: float | None = None
        self._notice: _OutageNotice | None = None
        self._waiting: asyncio.Task[None] | None = None

    def state(self) -> str:
        """Describe the service in a line: the calls in flight and the seconds of the last call, or when a throttled
        call is sent again, or how long the service has been away. Thread-safe.
        """
        if (notice := self._notice) is not None:
            return f"{notice.state} for {notice.seconds():.0f} s, waiting up to {notice.limit:g} s"
        if throttled := self.outages.throttled.get(self.name, str)():
            return f"{self.in_flight} in flight · {throttled}"
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
            except OUTAGE_ERRORS as error:
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
                refused = _refuses_key(error)
                notice.state = "refuses the API key" if refused else "away"
                reason = error.message
                if refused:
                    reason += f". {self.outages.key_origins.get(self.name, str)()}"
                away = notice.seconds()
                if why := self.outages.why_ended(self.client.urls):
                    raise ServiceGoneError(f"{notice.service} has ended and cannot come back: {why}")
                if self.outages.stop_requested():
                    raise InterruptedWaitError(f"the run was asked to stop while {notice.service} was away")
                if away >= self.outages.wait:
                    was = "refused the API key" if refused else "was away"
                    raise ServiceGoneError(
                        f"{notice.service} {was} for {away:.0f} s, and outage.wait is {self.outages.wait:g} s: {reason}"
                    )
                notice.update(reason)
                if refused:  # the health check may succeed all the same
                    await asyncio.sleep(min(PROBE_SECONDS, self.outages.wait - away))
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
        except OUTAGE_ERRORS as error:
            return error
        return None

    def _end_outage(self) -> None:
        if self._notice is not None:
            notice, self._notice = self._notice, None
            self.outages.add_span("outage", notice.since)
            notice.close()
            notice.announce_end()


def _refuses_key(error: VoldError) -> bool:
    return isinstance(error, Unauthenticated | PermissionDenied) and not isinstance(error, CertificateRefused)


class _OutageNotice(Notice):
    """The message about an outage. state: how the service is."""

    def __init__(self, name: str, urls: Sequence[str], limit: float) -> None:
        super().__init__()
        self.service = f"{name} {', '.join(urls)}"
        self.limit = limit
        self.state = "away"

    def update(self, reason: str) -> None:
        state = "is away" if self.state == "away" else self.state
        text = f"[yellow]{escape(self.service)} {state} for {self.seconds():.0f} s"
        limit = f"waiting up to {self.limit:g} s, then the run saves and stops (outage.wait)"
        self.show(f"{text}: {escape(reason)}; {limit}", f"{text}; {limit}")

    def announce_end(self) -> None:
        print_notice(f"[green]{escape(self.service)} answers again, after {self.seconds():.0f} s")
