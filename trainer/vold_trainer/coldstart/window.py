"""A sliding window of requests over the replicas of a teacher: each replica has as many as it takes, and whoever has
room gets the next one.

A replica that refuses requests for now has half as many from then on, and more again as they succeed. One that is away
gets none until it is ready; its requests go to the others. If all are away, the window waits as a run does (outages).
"""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from rich.markup import escape
from vold_client import DeadlineExceeded, ResourceExhausted, Throttled, VoldError

from vold_trainer.coldstart.answers import AnswerSource
from vold_trainer.errors import RunError
from vold_trainer.services.notices import print_notice
from vold_trainer.services.outages import OUTAGE_ERRORS, PROBE_SECONDS, MonitoredService, Outages

Item = tuple[int, int]
"""(row, sample)"""

ATTEMPTS = 3
"""How often a request is sent that fails although its replica is up."""

MAX_UNANSWERED = 32
"""Items without an answer after ATTEMPTS: more of them stop the window."""

SLOW_GROWTH = 4
"""Above the number that a replica refused, the window grows by one for this many rounds of successes."""

TRANSIENT = ("INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


class Worker(Protocol):
    """What the items are, and what becomes of their answers."""

    def next_item(self) -> Item | None:
        """The next item to request; None if there is none now."""
        ...

    def is_wanted(self, item: Item) -> bool:
        """Whether the item is still needed."""
        ...

    def is_done(self) -> bool:
        """Whether no item will come any more."""
        ...

    async def request(self, item: Item, source: AnswerSource) -> None:
        """Request one answer and record it, or that it was refused for good. Raises VoldError if it failed."""
        ...


class Lane:
    """One replica. cap: the most requests at a time; limit: as many as it gets now; knee: as many as it took when it
    refused one. running: requests under way, of which `waiting` are throttled.
    """

    def __init__(self, make_source: Callable[[Throttled], AnswerSource], wait: Throttled) -> None:
        """make_source: takes what waits when the replica refuses a request for now. wait: of the run, which prints."""
        self.source = make_source(partial(self._throttled, wait))
        self.set_cap(1)
        self.running = 0
        self.waiting = 0
        self.away = False
        self.on_trial = False
        self._credit = 0

    def set_cap(self, cap: int) -> None:
        self.cap = self.limit = self.knee = cap

    @property
    def free(self) -> int:
        """How many more requests it gets now."""
        return 0 if self.away else (1 if self.on_trial else self.limit) - self.running

    def refuse(self) -> None:
        """The replica refuses one of its requests for now. Halves the window once for all that are under way."""
        taken = max(1, self.running - self.waiting)
        if self.running > self.limit:
            self.knee = min(self.knee, taken)
            return
        self.knee, self.limit, self._credit = min(self.cap, taken), max(1, self.limit // 2), 0

    def succeed(self) -> None:
        """One of its requests was answered."""
        self.on_trial = False
        if self.limit < self.knee:
            self.limit += 1
        elif self.limit < self.cap:
            self._credit += 1
            if self._credit >= SLOW_GROWTH * self.limit:
                self._credit = 0
                self.limit += 1
                self.knee = self.limit

    async def _throttled(self, wait: Throttled, error: ResourceExhausted, seconds: float) -> None:
        """Wait before a request is sent again that the replica refuses for now."""
        self.waiting += 1
        self.refuse()
        try:
            await wait(error, seconds)
        finally:
            self.waiting -= 1


class Window:
    """Requests under way. Use it on one event loop. key: of the teacher in the config, for messages."""

    def __init__(self, lanes: Sequence[Lane], worker: Worker, outages: Outages, key: str = "teacher") -> None:
        self.lanes = lanes
        self.worker = worker
        self.key = key
        self.unanswered: dict[Item, VoldError] = {}
        self._service = MonitoredService(key, self, outages)
        self._tasks: dict[Item, asyncio.Task[None]] = {}
        self._helpers: set[asyncio.Task[None]] = set()
        self._again: list[Item] = []
        self._failures: dict[Item, int] = {}
        self._changed = asyncio.Event()
        self._lane_up = asyncio.Event()
        self._error: BaseException | None = None
        self._last: VoldError | None = None
        self._answers = 0
        self._waits_for_all = False

    @property
    def urls(self) -> list[str]:
        return [lane.source.url for lane in self.lanes]

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def wake(self) -> None:
        """There may be a next item, or an item that is not wanted any more."""
        self._changed.set()

    def cancel(self, item: Item) -> None:
        """End the request for an item, if it is under way."""
        if (task := self._tasks.get(item)) is not None:
            task.cancel()

    async def run(self) -> None:
        """Request items until there are none, and none is under way. Raises RunError if a service does not come back,
        or if the teacher fails for good.
        """
        try:
            while True:
                self._changed.clear()
                self._fill()
                if self._error is not None:
                    raise self._error
                if not self._tasks and not self._again and self.worker.is_done():
                    return
                await self._changed.wait()
        finally:
            await self._close()

    async def ready(self, seconds: float, *, every: bool = False) -> None:
        """Return once a replica is up, or raise the last error after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._lane_up.wait()
        except TimeoutError:
            assert self._last is not None
            raise self._last from None

    def _fill(self) -> None:
        while (lane := max(self.lanes, key=lambda lane: lane.free)).free > 0:
            item = self._next_item()
            if item is None:
                return
            lane.running += 1
            task = asyncio.get_running_loop().create_task(self._run_item(item, lane))
            self._tasks[item] = task
            task.add_done_callback(partial(self._on_end, item, lane))

    def _next_item(self) -> Item | None:
        while self._again:
            item = heapq.heappop(self._again)
            if self.worker.is_wanted(item):
                return item
        return self.worker.next_item()

    def _on_end(self, item: Item, lane: Lane, task: asyncio.Task[None]) -> None:
        del self._tasks[item]
        lane.running -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
        self._changed.set()

    async def _run_item(self, item: Item, lane: Lane) -> None:
        try:
            await self.worker.request(item, lane.source)
        except DeadlineExceeded as error:
            if await self._is_up(lane):
                self._count_failure(item, error)
            else:
                self._again_elsewhere(item, lane, error)
        except OUTAGE_ERRORS as error:
            self._again_elsewhere(item, lane, error)
        except VoldError as error:
            if error.code not in TRANSIENT:
                raise RunError(f"{self.key}: {error}") from error
            self._count_failure(item, error)
        else:
            self._answers += 1
            lane.succeed()

    def _count_failure(self, item: Item, error: VoldError) -> None:
        """Send the request again, or set the item aside."""
        self._failures[item] = self._failures.get(item, 0) + 1
        if self._failures[item] < ATTEMPTS:
            heapq.heappush(self._again, item)
            return
        self.unanswered[item] = error
        if len(self.unanswered) > MAX_UNANSWERED:
            raise RunError(
                f"{len(self.unanswered)} requests have failed {ATTEMPTS} times each, although {self.key} is up: {error}"
            )

    def _again_elsewhere(self, item: Item, lane: Lane, error: VoldError) -> None:
        heapq.heappush(self._again, item)
        self._last = error
        if lane.away:
            return
        lane.away = True
        self._start(self._probe(lane))
        others = sum(not other.away for other in self.lanes)
        if others:
            go_on = f"{others} of {len(self.lanes)} replicas go on"
            print_notice(f"[yellow]{escape(f'{self.key} {lane.source.url} is away: {error.message}; {go_on}')}")
            return
        self._lane_up.clear()
        if not self._waits_for_all:
            self._waits_for_all = True
            self._start(self._wait_for_all())

    async def _probe(self, lane: Lane) -> None:
        """Let the replica back in when it is ready, with one request until that one is answered."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if await self._is_up(lane):
                break
        lane.away, lane.on_trial = False, True
        if len(self.lanes) > 1:
            print_notice(f"[green]{escape(f'{self.key} {lane.source.url} is ready again')}")
        self._lane_up.set()
        self._changed.set()

    async def _is_up(self, lane: Lane) -> bool:
        try:
            await lane.source.ready(PROBE_SECONDS)
        except VoldError:
            return False
        return True

    async def _wait_for_all(self) -> None:
        """Wait while no replica is up, up to the limit on outages. An outage ends with an answer: a teacher that says
        it is ready and refuses every request is away as well.
        """
        answers = self._answers

        async def until_answered() -> None:
            while self._answers == answers:
                if all(lane.away for lane in self.lanes):
                    assert self._last is not None
                    raise self._last
                await asyncio.sleep(PROBE_SECONDS / 4)

        await self._service.call(until_answered)
        self._waits_for_all = False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._fail(error)

        task = asyncio.get_running_loop().create_task(run())
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._changed.set()

    async def _close(self) -> None:
        for task in (*self._tasks.values(), *self._helpers):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._helpers, return_exceptions=True)
        await self._service.aclose()
