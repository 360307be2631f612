"""Tenants on one device: what generates and what scores is on one account, and no priority crosses tenants.

All in counted positions: `advance(0.0)` decodes one step, and nothing looks at a clock.
"""

import asyncio
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_runs import run_engine
from teacher_fixtures import VOCAB, save_model
from vold_service.call import Call
from vold_service.fairness import FairShare
from vold_service.tenants import Tenant
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.loop import LoopDecoder, LoopThread
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, ScoreOptions, Sequence

HOSTILE, HONEST = Tenant("hostile"), Tenant("honest")
CACHE = 400
BATCH = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture
def backend(folder):
    return TorchBackend(folder, limits=DecoderLimits(max_rows=4, max_cache_tokens=CACHE))


def prompt(length: int, max_tokens: int) -> GeneratePrompt:
    return GeneratePrompt(np.arange(7, 7 + length, dtype=np.int32), 0, max_tokens)


def sequence(*completion: int) -> Sequence:
    return Sequence(np.array([5, 6], np.int32), np.array(completion, np.int32), ScoreOptions())


def long_sequences(count: int, seed: int) -> dict[int, Sequence]:
    rng = np.random.default_rng(seed)
    return {index: sequence(*rng.integers(0, VOCAB, 100).tolist()) for index in range(count)}


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_that_generate_get_positions_by_weight_whatever_their_priorities(backend, weight):
    share = FairShare()
    decoder = backend.decoder(share)
    heavy = replace(HONEST, weight=weight)
    requests = {}
    for number in range(36):
        tenant = HOSTILE if number < 24 else heavy
        requests[number] = tenant
        # The hostile tenant asks for long completions, which are charged when they start.
        size = prompt(5, 40 if tenant is HOSTILE else 20)
        decoder.add(number, [size], SamplingOptions(size.max_tokens), 1000 if tenant is HOSTILE else 0, tenant)
    height = low = worst = 0.0
    while heavy in decoder.tenants():
        decoder.advance(0.0)
        for request, positions in decoder.take_positions().items():
            height += positions / weight if requests[request] is heavy else -positions
        low = min(low, height)
        worst = max(worst, height - low, -low)
    assert worst <= 2 * (CACHE + 45)
    assert HOSTILE in decoder.tenants(), "the honest tenant was done first, so both were backlogged all the while"
    decoder.close()


def test_a_prompt_of_another_tenant_is_next_whatever_waits_before_it(backend):
    decoder = backend.decoder()
    requests = dict.fromkeys(range(50), HOSTILE) | {50: HONEST}
    for number, tenant in requests.items():
        decoder.add(number, [prompt(5, 30)], SamplingOptions(30), 1000 if tenant is HOSTILE else -1, tenant)
        if not number:
            decoder.advance(0.0)
    computed = 0.0
    while any(tenant is HONEST for tenant in decoder.tenants()):
        decoder.advance(0.0)
        computed += sum(decoder.take_positions().values())
    assert computed <= 2 * CACHE
    decoder.close()


def test_a_tenant_starts_no_rows_far_ahead_of_one_that_waits_to_be_scored(backend):
    """A running row cannot be held back, so a row of another tenant would carry it along."""
    share = FairShare()
    decoder = backend.decoder(share)
    for number in range(12):
        decoder.add(number, [prompt(5, 30)], SamplingOptions(30), 0, HOSTILE)
    share.enter(HONEST)
    share.charge(HOSTILE, 10 * CACHE)

    def rows() -> int:
        decoder.advance(0.0)
        return len(decoder._rows.live)

    assert [rows() for _ in range(5)] == [1] * 5
    share.leave(HONEST)
    assert rows() == 4
    decoder.close()


def test_an_engine_behind_gets_the_completions_of_each_tenant_in_turn():
    thread, gate, begun = LoopThread("test"), asyncio.Event(), []

    async def complete(prompt, index, options):
        begun.append(prompt.index)
        await gate.wait()
        yield GenerateChunk(prompt.index, index, prompt.ids, np.zeros(1, np.float32), "stop")

    decoder = LoopDecoder(thread, complete, max_rows=2)
    for number in range(30):
        decoder.add(number, [GeneratePrompt(np.arange(3, dtype=np.int32), 0, 5)], SamplingOptions(5), 1000, HOSTILE)
    decoder.add(30, [GeneratePrompt(np.arange(3, dtype=np.int32), 1, 5)], SamplingOptions(5), 0, HONEST)
    thread.loop.call_soon_threadsafe(gate.set)
    while decoder.busy:
        decoder.advance(0.05)
    assert begun.index(1) <= 3
    assert sum(decoder.take_positions().values()) == 31 * (3 + 3)
    thread.close()


def test_scoring_and_generation_of_tenants_are_on_one_account(backend):
    largest = 0.0
    apart: list[float] = []

    async def work(engine):
        share = engine.queue.share
        real = engine._generator.advance

        async def advance():
            nonlocal largest
            before = share.claim(HOSTILE)[0]
            await real()
            largest = max(largest, share.claim(HOSTILE)[0] - before)

        engine._generator.advance = advance

        async def generate(number):
            chunks = engine.generate([prompt(5, 80)], SamplingOptions(80), call=Call(tenant=HOSTILE))
            return [chunk async for chunk in chunks]

        generating = [asyncio.create_task(generate(number)) for number in range(24)]
        for number in range(3):
            await asyncio.gather(
                *(engine.score(long_sequences(20, 10 * number + part), call=Call(tenant=HONEST)) for part in range(4))
            )
            if not all(task.done() for task in generating):
                apart.append(share.claim(HONEST)[0] - share.claim(HOSTILE)[0])
        for task in generating:
            task.cancel()
        await asyncio.gather(*generating, return_exceptions=True)

    run_engine(backend, work, batch_tokens=BATCH)
    assert apart
    assert max(map(abs, apart)) <= 2 * (BATCH + max(largest, CACHE))


def test_no_tenant_waits_in_the_place_of_another_and_no_priority_in_that_of_a_lower(backend):
    computed: Counter[str] = Counter()

    def count(call, positions):
        computed[call.tenant.name] += positions

    async def work(engine):
        def score(tenant, priority=0):
            return engine.score({0: sequence(7, 8, 9)}, call=Call(tenant=tenant), priority=priority)

        first, same, other, urgent = await asyncio.gather(
            score(HOSTILE), score(HOSTILE), score(HONEST), score(HOSTILE, 5)
        )
        assert not first.cached
        assert same.cached == {0}
        assert not other.cached
        assert not urgent.cached
        scores = [each.scores[0].logprobs for each in (first, same, other, urgent)]
        assert all(np.allclose(each, scores[0], atol=1e-5) for each in scores)

    run_engine(backend, work, batch_tokens=BATCH, on_computed=count)
    assert computed["hostile"] == 2 * computed["honest"] > 0


def test_what_was_computed_for_a_caller_that_left_is_on_its_account(backend, monkeypatch):
    computed: Counter[str] = Counter()
    begun = threading.Event()
    real = backend.score

    def score(sequences):
        begun.set()
        return real(sequences)

    monkeypatch.setattr(backend, "score", score)

    async def work(engine):
        task = asyncio.create_task(engine.score(long_sequences(60, 0), call=Call(tenant=HOSTILE)))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.score({0: sequence(7)}, call=Call(tenant=HONEST))

    def account(call, positions):
        computed.update({call.tenant.name: positions})

    run_engine(backend, work, batch_tokens=BATCH, on_computed=account)
    assert 0 < computed["hostile"] <= 2 * BATCH
    assert computed["honest"] > 0
