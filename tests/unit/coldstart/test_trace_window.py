"""The sliding window: how many requests each replica gets, and which replica gets what another did not answer."""

import asyncio
from collections import Counter

import pytest
from vold_client import DeadlineExceeded, Internal, NotFound, ResourceExhausted, Unavailable
from vold_client.types import Identity
from vold_trainer.coldstart.answers import Answer, Described
from vold_trainer.coldstart.window import ATTEMPTS, MAX_UNANSWERED, Lane, Window
from vold_trainer.errors import RunError
from vold_trainer.services import outages
from vold_trainer.services.outages import Outages, ServiceGoneError

ANSWER = Answer("", [], "stop", 0, 0, Identity())


class Replica:
    """A source that answers as it is told to. most: requests that it takes at a time."""

    def __init__(self, url: str, throttled, most: int = 1000) -> None:
        self.url, self.throttled, self.most = url, throttled, most
        self.running = self.peak = self.answered = self.refused = 0
        self.error: Exception | None = None
        self.is_ready = True

    async def describe(self) -> Described:
        return Described(Identity(), self.most, seeded=True)

    async def answer(self, messages, seed) -> Answer:
        while self.running >= self.most:
            self.refused += 1
            await self.throttled(ResourceExhausted("full", retry_seconds=0.001), 0.001)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(0.001)
            if self.error is not None:
                raise self.error
            self.answered += 1
            return ANSWER
        finally:
            self.running -= 1

    async def ready(self, seconds: float) -> None:
        if not self.is_ready:
            raise Unavailable("away")

    async def aclose(self) -> None: ...


class Items:
    """A worker with `count` items."""

    def __init__(self, count: int) -> None:
        self.waiting = [(row, 0) for row in range(count)]
        self.done: Counter = Counter()
        self.begun: list = []
        self.errors: dict = {}

    def next_item(self):
        return self.waiting.pop(0) if self.waiting else None

    def is_wanted(self, item) -> bool:
        return item not in self.done

    def is_done(self) -> bool:
        return not self.waiting

    async def request(self, item, source) -> None:
        self.begun.append(item)
        if self.errors.get(item):
            raise self.errors[item].pop()
        await source.answer([], None)
        self.done[item] += 1


async def no_wait(error, seconds) -> None:
    await asyncio.sleep(seconds)


def lanes(*most: int, cap: int = 8) -> list[Lane]:
    made = []
    for number, each in enumerate(most):
        lane = Lane(lambda throttled, n=number, m=each: Replica(f"grpc://{n}", throttled, m), no_wait)
        lane.set_cap(cap)
        made.append(lane)
    return made


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch):
    monkeypatch.setattr("vold_trainer.coldstart.window.PROBE_SECONDS", 0.01)
    monkeypatch.setattr(outages, "PROBE_SECONDS", 0.01)


def test_every_replica_is_kept_full_and_no_fuller():
    parts, items = lanes(1000, 1000), Items(100)
    asyncio.run(Window(parts, items, Outages()).run())
    assert items.done == Counter({(row, 0): 1 for row in range(100)})
    assert [lane.source.peak for lane in parts] == [8, 8]
    assert sum(lane.source.answered for lane in parts) == 100


def test_a_replica_that_refuses_gets_half_and_then_as_many_as_it_takes():
    (lane,), items = lanes(20, cap=64), Items(2000)
    asyncio.run(Window([lane], items, Outages()).run())
    assert sum(items.done.values()) == 2000
    assert lane.source.peak == 20
    assert 20 <= lane.limit <= 24
    # The first refusals come with the first 64; afterwards the window seldom passes what the replica takes.
    assert lane.source.refused < 400


def test_the_window_is_halved_once_for_all_that_are_under_way():
    (lane,) = lanes(1, cap=64)
    lane.running = 64
    for waiting in range(1, 25):
        lane.waiting = waiting
        lane.refuse()
    assert (lane.limit, lane.knee) == (32, 40)
    lane.running, lane.waiting = 30, 0
    for _ in range(8):
        lane.succeed()
    assert lane.limit == 40
    for _ in range(8):
        lane.succeed()
    assert lane.limit == 40  # slowly from here


def test_the_other_replicas_take_over_from_one_that_is_away(capfd):
    parts, items = lanes(1000, 1000), Items(200)
    gone = parts[0].source
    gone.error, gone.is_ready = Unavailable("broken", url=gone.url), False
    asyncio.run(Window(parts, items, Outages()).run())
    assert sum(items.done.values()) == 200
    assert parts[1].source.answered == 200
    assert "teacher grpc://0 is away: broken; 1 of 2 replicas go on" in " ".join(capfd.readouterr().err.split())


def test_if_all_are_away_the_window_waits_and_goes_on(capfd):
    parts, items = lanes(1000, 1000), Items(50)
    for lane in parts:
        lane.source.error, lane.source.is_ready = Unavailable("broken"), False

    async def go() -> None:
        window = asyncio.create_task(Window(parts, items, Outages()).run())
        while not all(lane.away for lane in parts):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        parts[1].source.error, parts[1].source.is_ready = None, True
        await window

    asyncio.run(go())
    assert sum(items.done.values()) == 50
    said = " ".join(capfd.readouterr().err.split())
    assert "teacher grpc://0, grpc://1 is away for 0 s" in said
    assert "answers again" in said


def test_a_teacher_that_does_not_come_back_ends_the_window():
    parts, items = lanes(1000), Items(5)
    parts[0].source.error, parts[0].source.is_ready = Unavailable("broken"), False
    with pytest.raises(ServiceGoneError, match=r"outage\.wait is 0.1 s: "):
        asyncio.run(Window(parts, items, Outages(wait=0.1)).run())


def test_a_teacher_that_is_ready_and_answers_nothing_is_away_too():
    parts, items = lanes(1000), Items(5)
    parts[0].source.error = Unavailable("broken")
    with pytest.raises(ServiceGoneError, match=r"outage\.wait is 0.1 s: "):
        asyncio.run(Window(parts, items, Outages(wait=0.1)).run())


def test_what_fails_although_the_replica_is_up_is_sent_again_and_then_set_aside():
    items = Items(6)
    items.errors = {(1, 0): [Internal("once")], (3, 0): [DeadlineExceeded("slow") for _ in range(ATTEMPTS)]}
    window = Window(lanes(1000), items, Outages())
    asyncio.run(window.run())
    assert sorted(items.done) == [(row, 0) for row in range(6) if row != 3]
    assert {item: str(error) for item, error in window.unanswered.items()} == {(3, 0): "DEADLINE_EXCEEDED: slow"}


def test_too_many_of_those_stop_it():
    parts, items = lanes(1000), Items(200)
    parts[0].source.error = Internal("broken")
    with pytest.raises(RunError, match=rf"{MAX_UNANSWERED + 1} requests have failed {ATTEMPTS} times each, although"):
        asyncio.run(Window(parts, items, Outages()).run())


def test_an_error_that_no_repetition_helps_stops_it():
    parts, items = lanes(1000), Items(5)
    parts[0].source.error = NotFound("no such model")
    with pytest.raises(RunError, match="NOT_FOUND: no such model"):
        asyncio.run(Window(parts, items, Outages()).run())


def test_an_item_that_is_cancelled_makes_room_for_others():
    (lane,), items = lanes(1000, cap=1), Items(3)
    window = Window([lane], items, Outages())

    async def go() -> None:
        run = asyncio.create_task(window.run())
        await asyncio.sleep(0)
        window.cancel((0, 0))
        await run

    asyncio.run(go())
    assert sorted(items.done) == [(1, 0), (2, 0)]
