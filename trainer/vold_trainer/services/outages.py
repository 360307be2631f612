"""A service that is away: say so, wait until it takes work again, and past a limit stop the run in good order.

Nobody there, still loading, shutting down: the call is made again once the service is back, so that an outage loses no
score. A call that ran out of time is an outage only where the service's health says so too; else it was too slow, and
its scores are missing.
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
"""How long one look at a service that is away takes, and how often the message about it is renewed."""

FIRST_REMINDER = 10.0
"""Seconds until it is said again where no terminal is; doubled each time."""

Span = tuple[str, float, float]
"""(lane, start, end), seconds on time.monotonic()'s clock."""


class ServiceGoneError(RunError):
    """A service that did not come back. The student's weights are as they were before the step at hand."""


class InterruptedWaitError(RunError):
    """Somebody asked the run to stop while it waited for a service."""


@dataclass
class Outages:
    """wait: seconds for which a service may be away, `outage.wait`. stop: whether the run was asked to stop. ended: why
    nobody will bring back what is at these URLs, "" where somebody may. spells: the outages so far that are over.
    """

    wait: float = 600.0
    stop: Callable[[], bool] = bool
    ended: Callable[[Sequence[str]], str] = lambda urls: ""
    spells: list[Span] = field(default_factory=list)

    def take_spells(self) -> list[Span]:
        """The outages that ended since the last call."""
        taken, self.spells = self.spells, []
        return taken


class MonitoredService:
    """One service, as the calls to it find it. Belongs to the event loop of its client."""

    def __init__(self, name: str, client: AsyncTeacherClient | AsyncVerifierClient, outages: Outages) -> None:
        self.name = name
        self.client = client
        self.outages = outages
        self.under_way = 0
        self.seconds: float | None = None
        self._notice: _Notice | None = None
        self._waiting: asyncio.Task[None] | None = None

    def state(self) -> str:
        """How the service is, in a line: calls under way and how long the last one took, or how long it has been away.
        May be asked from any thread.
        """
        if (notice := self._notice) is not None:
            return f"away for {time.monotonic() - notice.since:.0f} s, waiting up to {notice.limit:g} s"
        last = "not asked yet" if self.seconds is None else f"last request {self.seconds:.2f} s"
        return f"{self.under_way} under way · {last}"

    async def call(self, make: Callable[[], Awaitable[None]]) -> None:
        """Make a call, again after each outage.

        Raises what the service says to the call itself; ServiceGoneError past the limit; InterruptedWaitError.
        """
        self.under_way += 1
        try:
            await self._call(make)
        finally:
            self.under_way -= 1

    async def _call(self, make: Callable[[], Awaitable[None]]) -> None:
        while True:
            started = time.monotonic()
            try:
                await make()
            except (Unavailable, DeadlineExceeded) as error:
                if isinstance(error, DeadlineExceeded) and await self._ready(PROBE_SECONDS) is None:
                    self._answered()
                    raise
                await self._outlast(error)
            except (VoldError, RunError):
                self._answered()
                raise
            else:
                self.seconds = time.monotonic() - started
                self._answered()
                return

    async def aclose(self) -> None:
        """Wait no longer."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    async def _outlast(self, error: VoldError) -> None:
        """Return once the service takes work; all calls that found it away wait together."""
        if self._waiting is None or self._waiting.done():
            if self._notice is None:
                self._notice = _Notice(self.name, self.client.urls, self.outages.wait)
            self._waiting = asyncio.create_task(self._wait(self._notice, error))
        await asyncio.shield(self._waiting)

    async def _wait(self, notice: "_Notice", error: VoldError) -> None:
        """The clock runs from the first call that failed to the first that succeeds: a service that says that it is
        ready and then takes nothing is away as well.
        """
        try:
            while True:
                away = time.monotonic() - notice.since
                if why := self.outages.ended(self.client.urls):
                    raise ServiceGoneError(f"{notice.what} has ended and cannot come back: {why}")
                if self.outages.stop():
                    raise InterruptedWaitError(f"asked to stop while {notice.what} was away")
                if away >= self.outages.wait:
                    raise ServiceGoneError(
                        f"{notice.what} was away for {away:.0f} s, and outage.wait is {self.outages.wait:g} s: "
                        f"{error.message}"
                    )
                notice.renew(error.message)
                found = await self._ready(min(PROBE_SECONDS, self.outages.wait - away))
                if found is None:
                    return
                error = found
        except BaseException:
            notice.close()
            raise

    async def _ready(self, seconds: float) -> VoldError | None:
        """Why no replica takes work; None where one does. Raises what no waiting mends."""
        try:
            await self.client.ready(seconds, every=False)
        except (Unavailable, DeadlineExceeded) as error:
            return error
        return None

    def _answered(self) -> None:
        if self._notice is not None:
            notice, self._notice = self._notice, None
            self.outages.spells.append(("outage", notice.since, time.monotonic()))
            notice.close()
            notice.over()


class _Notice:
    """What the run says about an outage: one line that is renewed on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, urls: Sequence[str], limit: float) -> None:
        self.what = f"{name} {', '.join(urls)}"
        self.since = time.monotonic()
        self.limit = limit
        self._next = 0.0
        self._status: Status | None = None

    def renew(self, reason: str) -> None:
        away = time.monotonic() - self.since
        text = f"[yellow]{escape(self.what)} is away for {away:.0f} s"
        then = f"waiting up to {self.limit:g} s, then the run saves and stops (outage.wait)"
        if self._next == 0.0:
            self._next = FIRST_REMINDER
            console.print(f"{text}: {escape(reason)}; {then}", highlight=False, soft_wrap=True)
        elif console.is_terminal and not console.quiet:
            if self._status is None:
                self._status = console.status(text)
                self._status.start()
            self._status.update(f"{text}; {then}")
        elif away >= self._next:
            self._next = 2 * away
            console.print(f"{text}; {then}", highlight=False, soft_wrap=True)

    def over(self) -> None:
        away = time.monotonic() - self.since
        console.print(f"[green]{escape(self.what)} answers again, after {away:.0f} s", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
