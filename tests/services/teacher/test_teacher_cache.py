"""The score cache in a real server: what was computed once is not computed again."""

import asyncio
import time

import httpx
import numpy as np
import pytest
import torch
from teacher_fixtures import VOCAB, save_model, teacher_server
from vold_client import AsyncTeacherClient, Completion, TeacherClient

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(6, VOCAB, 20) for _ in range(4)]
COMPLETIONS = [Completion(prompt=index % 4, ids=RNG.integers(6, VOCAB, 30)) for index in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


def metric(url: str, name: str) -> float:
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1]) if lines else 0.0


def computed(url: str) -> float:
    return metric(url, 'vold_teacher_computed_tokens_total{work="score"}')


def wait_until_computing(url: str) -> None:
    while metric(url, "vold_teacher_batch_tokens_count") == 0:
        time.sleep(0.01)


def test_a_request_sent_again_costs_nothing(folder):
    with teacher_server(folder) as server, TeacherClient(f"grpc://{server.grpc}") as teacher:
        first = teacher.score(PROMPTS, COMPLETIONS, top_k=2, entropy=True)
        before = computed(server.http)
        again = teacher.score(PROMPTS, COMPLETIONS, top_k=2, entropy=True)
        assert computed(server.http) == before
        assert metric(server.http, "vold_teacher_cache_hits_total") == len(COMPLETIONS)
        for one, other in zip(first.scores, again.scores, strict=True):
            assert not one.cached
            assert other.cached
            np.testing.assert_array_equal(one.logprobs, other.logprobs)
            np.testing.assert_array_equal(one.top_ids, other.top_ids)
            np.testing.assert_array_equal(one.entropy, other.entropy)
        teacher.score(PROMPTS, COMPLETIONS, top_k=2, entropy=True, temperature=0.5)
        assert computed(server.http) > before


def test_requests_that_are_alike_at_the_same_time_compute_once(folder):
    crowd = 12

    async def ask(url: str):
        async with AsyncTeacherClient(url) as teacher:
            return await asyncio.gather(*(teacher.score(PROMPTS, COMPLETIONS) for _ in range(crowd)))

    with teacher_server(folder, "--cache-bytes", "0") as alone, TeacherClient(f"grpc://{alone.grpc}") as teacher:
        once = teacher.score(PROMPTS, COMPLETIONS)
        cost = computed(alone.http)
        before = metric(alone.http, "vold_teacher_coalesced_total")
        twice = teacher.score(PROMPTS, COMPLETIONS + COMPLETIONS)
        assert computed(alone.http) == 2 * cost  # nothing is kept, and no completion is computed for each of its places
        assert metric(alone.http, "vold_teacher_coalesced_total") - before == len(COMPLETIONS)
        for index, score in enumerate(twice.scores):
            np.testing.assert_allclose(score.logprobs, once.scores[index % 16].logprobs, atol=1e-5)
    with teacher_server(folder) as server:
        results = asyncio.run(ask(f"grpc://{server.grpc}"))
        assert computed(server.http) == cost
        assert sum(not score.cached for result in results for score in result.scores) == len(COMPLETIONS)
        for result in results:
            for one, other in zip(result.scores, once.scores, strict=True):
                np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_who_waits_for_a_caller_that_leaves_is_served_all_the_same(folder):
    long = [Completion(prompt=0, ids=RNG.integers(6, VOCAB, 200)) for _ in range(60)]

    async def ask(url: str):
        async with AsyncTeacherClient(url) as first, AsyncTeacherClient(url) as second:
            leaving = asyncio.create_task(first.score(PROMPTS[:1], long))
            await asyncio.to_thread(wait_until_computing, http)
            staying = asyncio.create_task(second.score(PROMPTS[:1], long))
            await asyncio.sleep(0.05)
            leaving.cancel()
            return await staying

    with teacher_server(folder, "--max-batch-tokens", "1000") as server:
        http = server.http
        result = asyncio.run(ask(f"grpc://{server.grpc}"))
        assert all(score.error is None and len(score.logprobs) == 200 for score in result.scores)


def test_a_cache_folder_outlives_the_server(folder, tmp_path):
    options = ("--cache-dir", str(tmp_path / "scores"))
    with teacher_server(folder, *options) as server, TeacherClient(f"grpc://{server.grpc}") as teacher:
        first = teacher.score(PROMPTS, COMPLETIONS)
    with teacher_server(folder, *options) as server, TeacherClient(f"grpc://{server.grpc}") as teacher:
        again = teacher.score(PROMPTS, COMPLETIONS)
        assert computed(server.http) == 0
        for one, other in zip(first.scores, again.scores, strict=True):
            assert other.cached
            np.testing.assert_array_equal(one.logprobs, other.logprobs)
