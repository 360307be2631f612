"""Both clients, sync and async, against `vold-teacher serve` and `vold-verifier serve` as real processes."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import httpx
import numpy as np
import pytest
from teacher_fixtures import save_model, teacher_server
from vold_client import (
    AsyncTeacherClient,
    AsyncVerifierClient,
    Budget,
    Completion,
    IdentityChanged,
    InvalidArgument,
    Item,
    ItemBudget,
    NotFound,
    ScoreRequest,
    TeacherClient,
    VerifierClient,
)
from vold_proto.distribution import VERSION
from vold_proto.v1 import verifier_pb2, verifier_pb2_grpc

FACES = pytest.mark.parametrize("face", ["grpc", "http"])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with teacher_server(save_model(tmp_path_factory.mktemp("teacher"))) as server:
        yield SimpleNamespace(grpc=f"grpc://{server.grpc}", http=server.http)


def batch(seed: int = 0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(6, 100, size) for size in (3, 9, 1)]
    completions = [Completion(index % 3, rng.integers(6, 100, 2 + index)) for index in range(9)]
    completions[4] = Completion(1, completions[4].ids, rng.integers(0, 100, (6, 3)))
    completions[5] = Completion(2, completions[5].ids, [rng.integers(0, 100, n % 3) for n in range(7)])
    return prompts, completions


@FACES
def test_scores_of_a_real_teacher_whole_split_and_streamed(teacher, face):
    prompts, completions = batch()
    options = {"top_k": 3, "entropy": True}
    url = getattr(teacher, face)
    with TeacherClient(url) as client, TeacherClient(url, budget=Budget(completions=2)) as splitting:
        client.ready(30)
        whole = client.score(prompts, completions, **options)
        split = splitting.score(prompts, completions, **options)
        requests = [
            ScoreRequest(
                [prompts[completion.prompt]],
                [Completion(0, completion.ids, completion.candidates)],
                request_id=str(index),
                **options,
            )
            for index, completion in enumerate(completions)
        ]
        streamed = {int(result.request_id): result for result in client.score_stream(iter(requests))}
        assert whole.identity == client.info().identity == split.identity
    for index, completion in enumerate(completions):
        score = whole.scores[index]
        assert score.error is None
        assert score.logprobs.shape == score.entropy.shape == (len(completion.ids),)
        assert score.top_ids.shape == (len(completion.ids), 3)
        for other in (split.scores[index], streamed[index].scores[0]):
            np.testing.assert_allclose(other.logprobs, score.logprobs, atol=2e-5)
            np.testing.assert_allclose(other.top_logprobs, score.top_logprobs, atol=2e-5)
            np.testing.assert_allclose(other.entropy, score.entropy, atol=2e-5)
    assert whole.scores[4].candidate_logprobs.shape == (6, 3)
    assert [len(values) for values in whole.scores[5].candidate_logprobs] == [0, 1, 2, 0, 1, 2, 0]


@FACES
def test_a_real_teachers_errors(teacher, face):
    with TeacherClient(getattr(teacher, face)) as client:
        result = client.score([[6, 7], [8]], [Completion(0, [9]), Completion(1, []), Completion(1, [10**6])])
        assert result.scores[0].error is None
        assert [score.error.field for score in result.scores[1:]] == ["completions[1].ids", "completions[2].ids"]
        with pytest.raises(IdentityChanged):
            client.score([[6]], [Completion(0, [7])], expect="not these weights")
        with pytest.raises(InvalidArgument):
            client.score([[6]], [])
        with pytest.raises(NotFound):
            client.info("no such model")


@FACES
def test_a_real_teachers_tokenizer_and_generation(teacher, face):
    with TeacherClient(getattr(teacher, face)) as client:
        info, tokenizer = client.info(), client.tokenizer()
        assert info.vocab_size == 120
        assert info.tokenizer_size == len(json.loads(tokenizer.tokenizer_json)["model"]["vocab"])
        assert "messages" in tokenizer.chat_template or "for m in" in tokenizer.chat_template
        prompts = [[10, 11, 12], [{"role": "user", "content": "1+1"}]]
        done = list(client.generate(prompts, n=2, max_tokens=5, temperature=0))
        assert sorted((g.prompt, g.index) for g in done) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for generation in done:
            assert generation.error is None
            scores = client.score([generation.prompt_ids], [Completion(0, generation.ids)]).scores
            np.testing.assert_allclose(scores[0].logprobs, generation.logprobs, atol=2e-4)


def test_sync_clients_in_many_threads_beside_an_async_client(teacher, verifier, capfd):
    prompts, completions = batch()

    def work(client: TeacherClient) -> float:
        return float(client.score(prompts, completions).scores[0].logprobs[0])

    async def beside(client: TeacherClient) -> None:
        async with AsyncTeacherClient(teacher.grpc) as other, AsyncVerifierClient(verifier.grpc) as verifier_client:
            calls = [other.score(prompts, completions) for _ in range(4)]
            threads = [asyncio.to_thread(work, client) for _ in range(4)]
            await asyncio.gather(*calls, *threads, verifier_client.verify([Item("exact", "1", "1")]))

    with TeacherClient(teacher.grpc) as client, ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, [client] * 12))) >= 1
        asyncio.run(beside(client))
    assert "Traceback" not in capfd.readouterr().err


ITEMS = [
    Item("numeric", f"<think>x</think>\nAnswer: {n}" if n % 2 else f"\\boxed{{{n}}}", str(n), id=f"item-{n}")
    for n in range(20)
]


@FACES
def test_verdicts_in_order_whole_split_and_streamed(verifier, face):
    url = getattr(verifier, face)
    with VerifierClient(url) as client, VerifierClient(url, budget=ItemBudget(items=3)) as splitting:
        client.ready(30)
        assert "numeric" in [info.name for info in client.list_verifiers()]
        whole = client.verify(ITEMS)
        assert [verdict.id for verdict in whole] == [item.id for item in ITEMS]
        assert all(verdict.error is None and verdict.reward is not None for verdict in whole)
        split = splitting.verify(ITEMS)
        streamed = {verdict.id: verdict for verdict in client.verify_stream(iter(ITEMS))}
        for verdict, other in zip(whole, split, strict=True):
            assert (verdict.id, verdict.reward, verdict.extracted) == (other.id, other.reward, other.extracted)
            assert streamed[verdict.id].reward == verdict.reward


@FACES
def test_an_item_that_cannot_be_verified_has_no_reward(verifier, face):
    items = [Item("exact", "1", "1"), Item("no-such-verifier", "1", "1"), Item("exact", "1", "1", parameters={"x": 1})]
    with VerifierClient(getattr(verifier, face)) as client:
        verdicts = client.verify(items)
        streamed = sorted(client.verify_stream(items), key=lambda verdict: verdict.id)
    for results in (verdicts, streamed):
        assert [verdict.id for verdict in results] == ["0", "1", "2"]
        assert results[0].error is None
        assert [type(verdict.error) for verdict in results[1:]] == [NotFound, InvalidArgument]
        assert [verdict.reward for verdict in results[1:]] == [None, None]


def test_every_face_reports_the_version(teacher, verifier):
    for url in (teacher.grpc, teacher.http):
        with TeacherClient(url) as client:
            assert client.info().server_version == VERSION
    with grpc.insecure_channel(verifier.grpc.removeprefix("grpc://")) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        assert stub.ListVerifiers(verifier_pb2.ListVerifiersRequest()).server_version == VERSION
        assert stub.Verify(verifier_pb2.VerifyRequest()).server_version == VERSION
    assert httpx.get(f"{verifier.http}/v1/verifiers").json()["server_version"] == VERSION
    assert httpx.post(f"{verifier.http}/v1/verify", json={"items": []}).json()["server_version"] == VERSION
    for service in (teacher, verifier):
        assert httpx.get(f"{service.http}/v1/status").json()["version"] == VERSION
        assert httpx.get(f"{service.http}/openapi.json").json()["info"]["version"] == VERSION


def test_parameters_that_are_not_json(verifier):
    with VerifierClient(verifier.grpc) as client:
        with pytest.raises(InvalidArgument, match="JSON"):
            client.verify([Item("exact", "1", "1", parameters={"x": object()})])
        assert isinstance(next(client.verify_stream([Item("exact", "1", None)])).error, InvalidArgument)  # type: ignore[arg-type]


def test_items_on_a_stream_may_share_an_id(verifier):
    items = [Item("exact", "1", "1", id="same"), Item("exact", "2", "1", id="same")]
    with VerifierClient(verifier.grpc) as client:
        verdicts = list(client.verify_stream(items))
    assert [verdict.id for verdict in verdicts] == ["same", "same"]
    assert all(verdict.error is None for verdict in verdicts)
