"""The wait for a service before a command begins, with a line that says for what and for how long at most."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from rich.markup import escape
from vold_client import AsyncTeacherClient, AsyncVerifierClient, Unavailable, VoldError

from vold_trainer.errors import UsageError
from vold_trainer.services.notices import Notice, print_notice

T = TypeVar("T")

WAITING_LINE_SECONDS = 2.0
"""Seconds of silence before the line that says what a command waits for."""

POLL_SECONDS = 0.25

MIN_SECONDS = 1.0
"""What every service gets, also if the services before it have used up the time."""


class Waiting:
    """The line about a wait. what: the field, the URL and what it has to do. limit: it waits at most so many seconds.
    reason: why it still waits.
    """

    def __init__(self, what: str, limit: float) -> None:
        self.what = what
        self.limit = limit
        self.reason = ""
        self._notice = Notice(WAITING_LINE_SECONDS)

    def show(self) -> None:
        """Print what is due now."""
        reason = f": {escape(self.reason)}" if self.reason else ""
        waited = f"{self._notice.seconds():.0f} s so far, at most {self.limit:g} s"
        text = f"[yellow]waiting for {escape(self.what)}, {waited}{reason}"
        self._notice.show(text, text)

    def announce_ready(self) -> None:
        """Say that the wait is over, if its line was printed."""
        if self._notice.printed:
            print_notice(f"[dim]waited {self._notice.seconds():.0f} s for {escape(self.what)}")

    def close(self) -> None:
        self._notice.close()

    async def during(self, work: Awaitable[T], check: Callable[[], None] = lambda: None) -> T:
        """The result of `work`. check: called from time to time; its exception ends the wait."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self.show()
                check()
                await asyncio.wait([task], timeout=POLL_SECONDS)
            result = task.result()
            self.announce_ready()
            return result
        finally:
            task.cancel()
            self.close()


class Readiness:
    """Waits for services that all begin to be waited for at the same moment, so that the whole wait is bounded.

    patience: seconds until a remote replica has to be ready. local_seconds: the same for a child process, which may
    load a model. children: the config's URLs of the child processes, by the URLs of their sockets. check_children:
    raises an error if one of them has ended.
    """

    def __init__(
        self, *, patience: float, local_seconds: float, children: Mapping[str, str], check_children: Callable[[], None]
    ) -> None:
        self.started = time.monotonic()
        self.patience = patience
        self.local_seconds = local_seconds
        self.children = children
        self.check_children = check_children

    async def wait(self, client: AsyncTeacherClient | AsyncVerifierClient, field: str) -> None:
        """Wait until all replicas of a service are ready. Raises UsageError with the config's field and the URL."""
        end = time.monotonic() + MIN_SECONDS
        last = Unavailable("no answer", url=client.urls[0])
        waiting = Waiting(*self._describe(field, last.url))

        def record(error: VoldError) -> None:
            nonlocal last
            last = Unavailable(error.message, url=error.url)
            waiting.what, waiting.limit = self._describe(field, last.url)
            waiting.reason = "" if last.url in self.children else last.message  # it has no socket before it has loaded

        def check() -> None:
            self.check_children()
            limit = self._limit(last.url)
            if time.monotonic() >= max(end, self.started + limit):
                raise Unavailable(f"not ready within {limit:g} s: {last.message}", url=last.url)

        longest = max(map(self._limit, client.urls))
        try:
            await waiting.during(client.ready(longest + 2 * MIN_SECONDS, waiting=record), check)
        except VoldError as error:
            raise UsageError(f"{field}: {error}") from error

    def _limit(self, url: str) -> float:
        return self.local_seconds if url in self.children else self.patience

    def _describe(self, field: str, url: str) -> tuple[str, float]:
        """(what is waited for, the limit)"""
        if url in self.children:
            return f"{field} {self.children[url]!r} to start", self.local_seconds
        return f"{field} {url} to answer", self.patience
