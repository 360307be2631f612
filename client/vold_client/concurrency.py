"""Bounded concurrency with results in order of completion, and deadlines."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from vold_client.errors import DeadlineExceeded, InvalidArgument

T = TypeVar("T")
R = TypeVar("R")

_END: Any = object()


@dataclass(slots=True)
class Deadline:
    """The time by which a whole call, retries included, must end. at: on time.monotonic()'s clock.

    The parts of a call share its deadline, and while one of them pauses it, it moves on for all of them.
    """

    seconds: float
    at: float
    _pauses: int = 0
    _paused_at: float = 0.0

    @classmethod
    def start(cls, seconds: float) -> "Deadline":
        """`seconds` from now. Raises InvalidArgument if that is not a positive number."""
        return cls(check_timeout(seconds), time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left. Raises DeadlineExceeded if none are left."""
        left = self.at - (self._paused_at if self._pauses else time.monotonic())
        if left <= 0:
            raise DeadlineExceeded(
                f"no answer within the call's {self.seconds:g} s: allow a longer timeout or send less"
            )
        return left

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside this block out of the call's time."""
        if not self._pauses:
            self._paused_at = time.monotonic()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self.at += time.monotonic() - self._paused_at


def check_timeout(seconds: float) -> float:
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
        raise InvalidArgument(f"timeout is {seconds!r}: give a number of seconds above 0", field="timeout")
    return seconds


async def map_as_completed(
    source: Iterable[T] | AsyncIterable[T], work: Callable[[T], Awaitable[R]], limit: int
) -> AsyncGenerator[R, None]:
    """The results of `work(item)` in order of completion. At most `limit` items are read and not yet yielded.

    The source is read no faster than results are consumed. The first exception, of `work` or of the source, ends the
    iteration and cancels the rest. Closing the iterator early cancels the rest too.
    """
    finished: asyncio.Queue[Any] = asyncio.Queue()
    slots = asyncio.Semaphore(limit)

    async def run(item: T) -> None:
        finished.put_nowait(await work(item))

    async def read_source() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await slots.acquire()
                async for item in _iterate(source):
                    group.create_task(run(item))
                    await slots.acquire()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            finished.put_nowait(_END)

    reader = asyncio.create_task(read_source())
    try:
        while (result := await finished.get()) is not _END:
            slots.release()
            yield result
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _iterate(source: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    elif isinstance(source, list | tuple):
        for item in source:
            yield item
    else:
        # An iterator may compute (a rollout) or wait: a thread keeps it from blocking this loop.
        iterator = iter(source)
        while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
            yield item
