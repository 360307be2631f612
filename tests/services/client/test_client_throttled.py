"""A client whose calls wait for a service that refuses them for now, and whose API key is replaced under it."""

import asyncio

import pytest
from client_servers import Behaviour, grpc_teacher, http_teacher
from vold_client import (
    AsyncTeacherClient,
    Completion,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ScoreRequest,
    TeacherClient,
    Unauthenticated,
)
from vold_client import concurrency as deadlines
from vold_client.concurrency import Deadline
from vold_client.errors import Unavailable, from_http
from vold_proto.v1 import status_pb2

SERVERS = pytest.mark.parametrize("teacher", [grpc_teacher, http_teacher])
WORK = [[1]], [Completion(0, [1])]
BUSY = status_pb2.Status(code=status_pb2.RESOURCE_EXHAUSTED, message="over a quota", retry_seconds=30)


class Refusals(list):
    """The refusals that a client waited for: (error, seconds). Nobody really waits."""

    async def wait(self, error, seconds):
        self.append((error, seconds))


async def score(client):
    return (await client.score(*WORK)).scores


async def score_stream(client):
    (result,) = [result async for result in client.score_stream([ScoreRequest(*WORK)])]
    if result.error is not None:
        raise result.error
    return result.scores


async def generate(client):
    return [generation async for generation in client.generate([[1]], max_tokens=2)]


CALLS = pytest.mark.parametrize("call", [score, score_stream, generate])


@SERVERS
@CALLS
def test_a_call_that_is_refused_for_now_waits_until_it_is_answered(teacher, call):
    """Twenty waits of 30 s and more do not count as retries, nor against the call's 5 s."""

    async def main():
        behaviour, refusals = Behaviour(status=lambda number: BUSY if number <= 20 else None), Refusals()
        options = {"retries": 0, "timeout": 5, "throttled": refusals.wait}
        async with teacher(behaviour) as url, AsyncTeacherClient(url, **options) as client:
            (answer,) = await call(client)
        assert answer.error is None
        assert behaviour.calls == 21
        assert {error.message for error, _ in refusals} == {"over a quota"}
        assert 10 <= len(refusals) <= 20  # a stream's refusal that gRPC loses is asked for again
        assert all(seconds >= 30 for _, seconds in refusals)

    asyncio.run(main())


@SERVERS
@CALLS
def test_a_refusal_without_a_retry_delay_is_raised(teacher, call):
    async def main():
        never = status_pb2.Status(code=status_pb2.RESOURCE_EXHAUSTED, message="larger than all that is allowed")
        behaviour, refusals = Behaviour(status=lambda number: never), Refusals()
        async with (
            teacher(behaviour) as url,
            AsyncTeacherClient(url, retries=0, throttled=refusals.wait) as client,
        ):
            with pytest.raises(ResourceExhausted, match="larger than all that is allowed"):
                await call(client)
        assert refusals == []
        assert behaviour.calls <= (2 if call is score_stream else 1)  # a refusal that gRPC loses is asked for again

    asyncio.run(main())


def test_another_error_is_raised_after_a_wait():
    async def main():
        gone = status_pb2.Status(code=status_pb2.UNAVAILABLE, message="shutting down")
        behaviour, refusals = Behaviour(status=lambda number: BUSY if number == 1 else gone), Refusals()
        async with (
            grpc_teacher(behaviour) as url,
            AsyncTeacherClient(url, retries=0, throttled=refusals.wait) as client,
        ):
            with pytest.raises(Unavailable, match="shutting down"):
                await score(client)
        assert len(refusals) == 1

    asyncio.run(main())


def test_an_exception_of_the_wait_ends_the_call():
    async def stop(error, seconds):
        raise KeyError("stop")

    async def main():
        async with (
            grpc_teacher(Behaviour(status=lambda number: BUSY)) as url,
            AsyncTeacherClient(url, throttled=stop) as client,
        ):
            for call in (score, score_stream, generate):
                with pytest.raises(KeyError):
                    await call(client)

    asyncio.run(main())


def test_a_replica_that_is_free_gets_the_call_without_a_wait():
    async def main():
        refusals = Refusals()
        async with (
            grpc_teacher(Behaviour(status=lambda number: BUSY)) as busy,
            grpc_teacher() as free,
            AsyncTeacherClient([busy, free], throttled=refusals.wait) as client,
        ):
            await score(client)
        assert not refusals

    asyncio.run(main())


def test_a_paused_deadline_moves_for_all_parts_of_a_call(monkeypatch):
    now = 100.0
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: now)
    deadline = Deadline.start(10)
    with deadline.paused():
        now = 105.0
        with deadline.paused():
            now = 500.0
        assert deadline.remaining() == 10  # of another part
    assert deadline.remaining() == 10
    now = 509.0
    assert deadline.remaining() == 1
    now = 510.0
    with pytest.raises(DeadlineExceeded, match="within the call's 10 s"):
        deadline.remaining()


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("", 0.0), ("Mon, 30 Nov 2026 05:00:00 GMT", 0.0)])
def test_the_retry_delay_of_a_proxy_counts(header, seconds):
    error = from_http(429, "text/html", b"<h1>slow down</h1>", "http://teacher", header)
    assert isinstance(error, ResourceExhausted)
    assert error.retry_seconds == seconds


UNKNOWN = status_pb2.Status(code=status_pb2.UNAUTHENTICATED, message="unknown key")


@SERVERS
@CALLS
def test_a_refused_key_is_read_again(teacher, call):
    async def main():
        keys = iter(["old", "new"])
        behaviour = Behaviour(status=lambda number: UNKNOWN if given()[-1] == "Bearer old" else None)

        def given() -> list[str]:
            return [each["authorization"] for each in behaviour.metadata]

        async with teacher(behaviour) as url, AsyncTeacherClient(url, api_key=lambda: next(keys), retries=0) as client:
            await call(client)
        # A stream whose refusal is lost with its connection is asked once more to learn it.
        assert given() in (["Bearer old", "Bearer new"], ["Bearer old", "Bearer old", "Bearer new"])

    asyncio.run(main())


@SERVERS
def test_a_refused_key_that_stays_the_same_is_refused_once(teacher):
    async def main():
        behaviour = Behaviour(status=lambda number: UNKNOWN)
        async with teacher(behaviour) as url, AsyncTeacherClient(url, api_key=lambda: "old") as client:
            with pytest.raises(Unauthenticated, match="unknown key"):
                await score(client)
        assert behaviour.calls == 1

    asyncio.run(main())


@pytest.mark.parametrize("key", ["secret\n", "sec ret", "secret\x00", "s\u00e9cret"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    for source in (key, lambda: key):
        with pytest.raises(InvalidArgument, match="the API key has white space") as caught:
            TeacherClient("grpc://127.0.0.1:1", api_key=source)
        assert "cret" not in str(caught.value)
