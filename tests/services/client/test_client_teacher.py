"""The teacher's client against servers that score by a formula, over gRPC and over HTTP."""

import asyncio
import re

import numpy as np
import pytest
from client_servers import BAD_ID, Behaviour, formula, free_port, grpc_teacher, http_teacher
from vold_client import (
    AsyncTeacherClient,
    AsyncVerifierClient,
    Budget,
    Completion,
    DeadlineExceeded,
    Identity,
    IdentityChanged,
    InvalidArgument,
    Item,
    NotFound,
    ResourceExhausted,
    ScoreRequest,
    TeacherClient,
    Unauthenticated,
    Unavailable,
)
from vold_proto.distribution import VERSION
from vold_proto.v1 import status_pb2
from vold_proto.v1 import teacher_pb2 as pb

SERVERS = pytest.mark.parametrize("teacher", [grpc_teacher, http_teacher], ids=["grpc", "http"])


def batch(prompts: int = 5, group: int = 4, seed: int = 0):
    """Prompts, and their completions in an order that is not by prompt, with every kind of candidates."""
    rng = np.random.default_rng(seed)
    prompt_ids = [rng.integers(0, 100, rng.integers(1, 9)) for _ in range(prompts)]
    completions = []
    for prompt in list(range(prompts)) * group:
        ids = rng.integers(0, 100, rng.integers(1, 12))
        kind = rng.integers(3)
        ragged = [rng.integers(0, 50, rng.integers(0, 4)) for _ in ids]
        candidates = [None, rng.integers(0, 50, (len(ids), 3)), ragged][kind]
        completions.append(Completion(prompt, ids, candidates))
    return prompt_ids, completions


def check(prompts, completions, scores, atol: float = 0.0) -> None:
    assert len(scores) == len(completions)
    for index, (completion, score) in enumerate(zip(completions, scores, strict=True)):
        assert score.error is None
        assert score.id == (completion.id or str(index))
        expected = formula(np.asarray(prompts[completion.prompt]), np.asarray(completion.ids))
        assert score.logprobs.dtype == np.float32
        np.testing.assert_allclose(score.logprobs, expected, atol=atol)
        candidates = completion.candidates
        if candidates is None:
            assert score.candidate_logprobs is None
        elif isinstance(candidates, list):
            for actual, value, ids in zip(score.candidate_logprobs, expected, candidates, strict=True):
                np.testing.assert_allclose(actual, value - np.asarray(ids) / 4, atol=atol)
        else:
            np.testing.assert_allclose(score.candidate_logprobs, expected[:, None] - candidates / 4, atol=atol)


@SERVERS
def test_scores_are_in_order_with_all_requested_fields(teacher):
    async def main():
        prompts, completions = batch()
        async with teacher() as url, AsyncTeacherClient(url) as client:
            result = await client.score(prompts, completions, top_k=2, entropy=True, hidden_states=True, ranks=True)
            check(prompts, completions, result.scores)
            assert result.identity == Identity("formula", "1", "w1", "t1")
            for completion, score in zip(completions, result.scores, strict=True):
                assert score.top_ids.tolist() == [[i, i + 1] for i in completion.ids]
                np.testing.assert_array_equal(score.top_logprobs, score.logprobs[:, None] - [0, 1])
                np.testing.assert_array_equal(score.entropy, -score.logprobs)
                assert score.hidden_states.shape == (len(completion.ids), 3)
                assert score.ranks.tolist() == [i % 7 + 1 for i in completion.ids]
            plain = await client.score(prompts, completions, dtype="bf16")
            assert plain.scores[0].top_ids is None
            assert plain.scores[0].entropy is None
            assert plain.scores[0].ranks is None
            check(prompts, completions, plain.scores, atol=0.2)

    asyncio.run(main())


@SERVERS
@pytest.mark.parametrize("budget", [Budget(completions=3), Budget(bytes=300), Budget(bytes=1, completions=1)])
def test_a_split_request_equals_a_whole_one(teacher, budget):
    async def main():
        prompts, completions = batch()
        behaviour = Behaviour()
        async with teacher(behaviour) as url:
            async with AsyncTeacherClient(url, budget=budget) as client:
                result = await client.score(prompts, completions, request_id="mine", entropy=True)
            check(prompts, completions, result.scores)
            assert result.request_id == "mine"
            assert len(behaviour.requests) > 4
            assert result.compute_seconds == 0.5 * len(behaviour.requests)
            assert sorted(c.id for r in behaviour.requests for c in r.completions) == sorted(map(str, range(20)))
            assert all(len({p.ids for p in r.prompts}) == len(r.prompts) for r in behaviour.requests)

    asyncio.run(main())


def test_a_bad_completion_has_an_error_with_its_index_and_the_others_have_scores():
    async def main():
        prompts, completions = batch()
        completions[7] = Completion(0, [1, BAD_ID], id="bad")
        async with grpc_teacher() as url, AsyncTeacherClient(url, budget=Budget(completions=3)) as client:
            scores = (await client.score(prompts, completions)).scores
            error = scores[7].error
            assert isinstance(error, InvalidArgument)
            assert scores[7].id == "bad"
            assert scores[7].logprobs is None
            assert error.field == "completions[7].ids"
            assert "completions[7].ids" in error.message
            assert all(score.error is None for index, score in enumerate(scores) if index != 7)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("prompts", "completion", "field"),
    [
        ([[1.5]], Completion(0, [1]), "prompts[0]"),
        ([[1]], Completion(1, [1]), "completions[0].prompt"),
        ([[1]], Completion(0, [2**40]), "completions[0].ids"),
        ([[1]], Completion(0, [[1]]), "completions[0].ids"),
        ([[1]], Completion(0, [1, 2], np.array([1, 2])), "completions[0].candidates"),
        ([[1]], Completion(0, [1, 2], np.array([[1]])), "completions[0].candidates"),
        ([[1]], Completion(0, [1, 2], [[1]]), "completions[0].candidates"),
        ([[1]], Completion(0, [1], [[0.5]]), "completions[0].candidates"),
    ],
)
def test_an_error_of_packing_names_the_field(prompts, completion, field):
    with TeacherClient("grpc://127.0.0.1:1") as client, pytest.raises(InvalidArgument) as caught:
        client.score(prompts, [completion])
    assert caught.value.field == field


@pytest.mark.parametrize("options", [{"dtype": "f64"}, {"top_k": -1}, {"timeout": 0}, {"timeout": float("nan")}])
def test_an_option_out_of_range_is_refused_by_the_client(options):
    with TeacherClient("grpc://127.0.0.1:1") as client, pytest.raises(InvalidArgument):
        client.score([[1]], [Completion(0, [1])], **options)


@SERVERS
def test_metadata_and_deadline_are_sent(teacher):
    async def main():
        behaviour = Behaviour()
        options = {"api_key": "secret", "run_id": "run-1", "timeout": 7}
        async with teacher(behaviour) as url, AsyncTeacherClient(url, **options) as client:
            await client.score([[1]], [Completion(0, [1])], request_id="request-1", expect="w1", priority=3)
        metadata, request = behaviour.metadata[0], behaviour.requests[0]
        assert metadata["authorization"] == "Bearer secret"
        assert re.match(rf"vold-client/{re.escape(VERSION)}( |$)", metadata["user-agent"])
        assert metadata["x-request-id"] == "request-1"
        assert metadata["x-vold-run-id"] == request.run_id == "run-1"
        assert (request.request_id, request.priority, request.expect_weights_fingerprint) == ("request-1", 3, "w1")
        if teacher is http_teacher:
            assert 0 < float(metadata["x-vold-timeout-seconds"]) <= 7

    asyncio.run(main())


def busy_twice(number: int) -> status_pb2.Status | None:
    if number <= 2:
        return status_pb2.Status(code=status_pb2.RESOURCE_EXHAUSTED, message="queue is full", retry_seconds=0.05)
    return None


@SERVERS
def test_a_full_service_is_retried(teacher):
    async def main():
        behaviour = Behaviour(status=busy_twice)
        async with teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            await client.score([[1]], [Completion(0, [1])])
            assert behaviour.calls == 3
            behaviour.calls = 0
        async with teacher(behaviour) as url, AsyncTeacherClient(url, retries=1) as client:
            with pytest.raises(ResourceExhausted, match="queue is full; given up after 2 attempts") as caught:
                await client.score([[1]], [Completion(0, [1])])
            assert caught.value.retry_seconds == pytest.approx(0.05)
            assert caught.value.url == url

    asyncio.run(main())


@SERVERS
def test_an_error_that_is_not_retryable_is_raised_at_once(teacher):
    async def main():
        status = status_pb2.Status(code=status_pb2.UNAUTHENTICATED, message="unknown key", field="authorization")
        behaviour = Behaviour(status=lambda number: status)
        async with teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            with pytest.raises(Unauthenticated) as caught:
                await client.score([[1]], [Completion(0, [1])])
            assert (caught.value.code, caught.value.field) == ("UNAUTHENTICATED", "authorization")
            assert behaviour.calls == 1

    asyncio.run(main())


@SERVERS
def test_a_service_that_never_replies_ends_the_call_at_its_deadline(teacher):
    async def main():
        behaviour = Behaviour(hang=True)
        async with teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            with pytest.raises(DeadlineExceeded, match="longer timeout"):
                await client.score([[1]], [Completion(0, [1])], timeout=0.3)
            assert behaviour.calls == 1

    asyncio.run(main())


def test_retries_never_go_past_the_deadline():
    async def main():
        status = status_pb2.Status(code=status_pb2.UNAVAILABLE, message="loading", retry_seconds=60)
        behaviour = Behaviour(status=lambda number: status)
        async with grpc_teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            async with asyncio.timeout(10):
                with pytest.raises(Unavailable, match="loading"):
                    await client.score([[1]], [Completion(0, [1])], timeout=5)
            assert behaviour.calls == 1

    asyncio.run(main())


def test_a_cancelled_call_is_cancelled_at_the_service():
    async def main():
        behaviour = Behaviour(hang=True)
        async with grpc_teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            call = asyncio.create_task(client.score([[1]], [Completion(0, [1])]))
            await behaviour.entered.wait()
            call.cancel()
            await behaviour.cancelled.wait()

    asyncio.run(main())


def test_a_call_waits_for_a_server_that_starts_later():
    async def main():
        port = free_port()
        url = f"grpc://127.0.0.1:{port}"
        async with AsyncTeacherClient(url, retries=50) as client:
            call = asyncio.create_task(client.score([[1]], [Completion(0, [1])]))
            await asyncio.sleep(0.5)
            assert not call.done()
            async with grpc_teacher(port=port):
                assert (await call).scores[0].error is None

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_error_of_an_unreachable_service_names_its_url(scheme):
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with TeacherClient(url, retries=1) as client:
        with pytest.raises(Unavailable, match="is the service running there") as caught:
            client.info()
        assert url in str(caught.value)
        with pytest.raises(Unavailable, match="not ready within") as caught:
            client.ready(0.3)
        assert url in str(caught.value)


@SERVERS
def test_ready(teacher):
    async def main():
        async with teacher() as url, AsyncTeacherClient(url) as client:
            await client.ready(5)

    asyncio.run(main())


def test_ready_waits_for_serving():
    async def main():
        async with grpc_teacher(serving=False) as url, AsyncTeacherClient(url) as client:
            with pytest.raises(Unavailable, match="does not take work"):
                await client.ready(0.5)

    asyncio.run(main())


def test_a_service_of_another_kind():
    async def main():
        async with grpc_teacher() as url, AsyncVerifierClient(url) as client:
            with pytest.raises(NotFound, match="another kind"):
                await client.verify([Item("math", "1", "1")])
        async with http_teacher() as url, AsyncVerifierClient(url) as client:
            with pytest.raises(NotFound, match="another kind"):
                await client.verify([Item("math", "1", "1")])

    asyncio.run(main())


def test_a_message_over_the_services_limit_is_not_retried():
    async def main():
        behaviour = Behaviour()
        async with grpc_teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            with pytest.raises(InvalidArgument, match="smaller batches"):
                await client.score([np.zeros(1 << 20, np.int32)], [Completion(0, [1])])

    asyncio.run(main())


def test_calls_go_round_robin_and_skip_an_unreachable_replica():
    async def main():
        first, second = Behaviour(), Behaviour()
        async with grpc_teacher(first) as a, grpc_teacher(second) as b:
            dead = f"grpc://127.0.0.1:{free_port()}"
            async with AsyncTeacherClient([a, b]) as client:
                await client.ready(5)
                for _ in range(6):
                    await client.score([[1]], [Completion(0, [1])])
                assert (first.calls, second.calls) == (3, 3)
            async with AsyncTeacherClient(f"{dead},{a}, {b}", retries=0) as client:
                for _ in range(6):
                    await client.score([[1]], [Completion(0, [1])])
            assert first.calls + second.calls == 12

    asyncio.run(main())


def test_a_replica_that_stops_is_skipped_and_used_again_when_it_is_back():
    async def main():
        first, second = Behaviour(), Behaviour()
        port = free_port()
        async with grpc_teacher(second) as b, AsyncTeacherClient([f"grpc://127.0.0.1:{port}", b]) as client:
            async with grpc_teacher(first, port=port):
                for _ in range(4):
                    await client.score([[1]], [Completion(0, [1])])
            assert first.calls == 2
            for _ in range(4):
                await client.score([[1]], [Completion(0, [1])])
            assert (first.calls, second.calls) == (2, 6)
            async with grpc_teacher(first, port=port):
                while first.calls == 2:
                    await client.score([[1]], [Completion(0, [1])])
                    await asyncio.sleep(0.02)

    asyncio.run(main())


def test_replicas_with_different_teachers_are_an_error():
    async def main():
        other = Behaviour(identity=pb.Identity(model="other", weights_fingerprint="w2", tokenizer_fingerprint="t1"))
        async with grpc_teacher() as a, grpc_teacher(other) as b:
            async with AsyncTeacherClient([a, b], budget=Budget(completions=1)) as client:
                with pytest.raises(IdentityChanged, match="replicas must serve one model"):
                    await client.score([[1]], [Completion(0, [1]), Completion(0, [2])])
            async with AsyncTeacherClient(b) as client:
                with pytest.raises(IdentityChanged, match="'w1' were expected"):
                    await client.score([[1]], [Completion(0, [1])], expect="w1")
                with pytest.raises(IdentityChanged, match="tokenizer"):
                    await client.score([[1]], [Completion(0, [1])], expect=Identity("other", "", "w2", "t9"))

    asyncio.run(main())


def requests(count: int, **options) -> list[ScoreRequest]:
    return [ScoreRequest([[n]], [Completion(0, [n, n + 1])], request_id=f"r{n}", **options) for n in range(count)]


def check_stream(results, count: int) -> None:
    assert sorted(result.request_id for result in results) == sorted(f"r{n}" for n in range(count))
    for result in results:
        number = int(result.request_id[1:])
        assert result.error is None
        expected = formula(np.array([number]), np.array([number, number + 1]))
        np.testing.assert_array_equal(result.scores[0].logprobs, expected)


@SERVERS
@pytest.mark.parametrize("kind", ["list", "generator", "async"])
def test_a_stream_returns_results_in_order_of_completion(teacher, kind):
    async def source():
        for request in requests(40):
            yield request

    async def main():
        slow = Behaviour(delay=lambda request: 0.3 if request.request_id == "r0" else 0.0)
        async with teacher(slow) as url, AsyncTeacherClient(url, max_in_flight=8) as client:
            source_of_kind = {"list": requests(40), "generator": (r for r in requests(40)), "async": source()}[kind]
            results = [result async for result in client.score_stream(source_of_kind)]
            check_stream(results, 40)
            assert results[0].request_id != "r0"

    asyncio.run(main())


def test_a_stream_that_breaks_continues_on_the_same_or_another_replica():
    async def main():
        breaking = Behaviour(break_stream_after=5)
        async with grpc_teacher(breaking) as a:
            async with AsyncTeacherClient(a, max_in_flight=8) as client:
                check_stream([result async for result in client.score_stream(requests(30))], 30)
            assert breaking.break_stream_after is None
            breaking.break_stream_after = 5
            async with grpc_teacher() as b, AsyncTeacherClient([a, b], max_in_flight=8) as client:
                check_stream([result async for result in client.score_stream(requests(30))], 30)

    asyncio.run(main())


def test_on_a_stream_to_an_unreachable_server_each_request_has_an_error():
    async def main():
        async with AsyncTeacherClient(f"grpc://127.0.0.1:{free_port()}", retries=1) as client:
            results = [result async for result in client.score_stream(requests(3))]
        assert [type(result.error) for result in results] == [Unavailable] * 3
        assert all(not result.scores for result in results)

    asyncio.run(main())


def test_on_a_stream_each_request_has_its_own_timeout_and_error():
    async def main():
        slow = Behaviour(delay=lambda request: 30.0 if request.request_id == "r1" else 0.0)
        async with grpc_teacher(slow) as url, AsyncTeacherClient(url) as client:
            sent = [*requests(3, timeout=1.0), ScoreRequest([[1]], [Completion(9, [1])], request_id="wrong")]
            results = {result.request_id: result async for result in client.score_stream(sent)}
        assert isinstance(results["r1"].error, DeadlineExceeded)
        assert isinstance(results["wrong"].error, InvalidArgument)
        assert results["r0"].error is results["r2"].error is None
        assert 0 < slow.requests[0].timeout_seconds <= 1.0

    asyncio.run(main())


def test_a_stream_with_a_repeated_and_a_missing_request_id():
    async def main():
        async with grpc_teacher() as url, AsyncTeacherClient(url) as client:
            sent = [ScoreRequest([[n]], [Completion(0, [n])], request_id=name) for n, name in enumerate("aab")]
            sent.append(ScoreRequest([[7]], [Completion(0, [7])]))
            results = [result async for result in client.score_stream(sent)]
        assert len({result.request_id for result in results} - {"a", "b"}) == 1
        assert sorted(float(result.scores[0].logprobs[0]) for result in results) == sorted(
            float(formula(np.array([n]), np.array([n]))[0]) for n in (0, 1, 2, 7)
        )

    asyncio.run(main())


def test_closing_a_stream_early_stops_it_at_the_service():
    async def main():
        behaviour = Behaviour()
        async with grpc_teacher(behaviour) as url, AsyncTeacherClient(url, max_in_flight=2) as client:
            results = client.score_stream(requests(1000))
            await anext(results)
            await results.aclose()
            assert len(behaviour.requests) < 10

    asyncio.run(main())


def test_an_exception_of_the_request_iterator_is_raised():
    def source():
        yield from requests(2)
        raise KeyError("rollout")

    with TeacherClient(f"grpc://127.0.0.1:{free_port()}", retries=0) as client, pytest.raises(KeyError):
        list(client.score_stream(source()))


@SERVERS
def test_generate(teacher):
    async def main():
        async with teacher() as url, AsyncTeacherClient(url) as client:
            prompts = [[5, 6], [{"role": "user", "content": "hello"}], []]
            done = [generation async for generation in client.generate(prompts, n=2, max_tokens=3, stop_ids=[4])]
        assert [(g.prompt, g.index) for g in done] == [(2, 0), (1, 0), (1, 1), (0, 0), (0, 1)]
        assert isinstance(done[0].error, InvalidArgument)
        assert done[1].text == "hello"
        assert done[-1].ids.tolist() == [1, 2, 3]
        assert done[-1].logprobs.tolist() == [-1, -2, -3]
        assert done[-1].prompt_ids.tolist() == [5, 6]

    asyncio.run(main())


@SERVERS
def test_generate_is_retried_before_its_first_event_only(teacher):
    async def main():
        behaviour = Behaviour(status=busy_twice)
        async with teacher(behaviour) as url, AsyncTeacherClient(url) as client:
            assert len([g async for g in client.generate([[1]], n=2, max_tokens=1)]) == 2
            assert behaviour.calls == 3
            behaviour.generate_breaks_after = 1
            with pytest.raises(Unavailable, match="going down"):
                async for _ in client.generate([[1]], n=2, max_tokens=1):
                    pass
            assert behaviour.calls == 4

    asyncio.run(main())


def test_info_and_a_client_in_two_loops():
    async def ask(client):
        return await client.info()

    async def main():
        async with grpc_teacher() as url:
            client = AsyncTeacherClient(url)
            info = await ask(client)
            assert info.identity.model == "formula"
            assert info.capabilities == {"top_k", "generate"}
            assert (info.special_ids, info.eos_ids) == ({"eos": 1}, [1, 2])
            return client

    client = asyncio.run(main())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(ask(client))
