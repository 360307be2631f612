"""The engine where the backend, the queue or the server fails under it: nobody loses more than the fault costs."""

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_runs import run_engine
from teacher_fixtures import save_model
from vold_proto.v1 import status_pb2
from vold_service.call import Call
from vold_service.errors import ServiceError, unavailable
from vold_service.tenants import Tenant
from vold_teacher.backends.base import ScoredBatch
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.batch import group_by_prompt
from vold_teacher.engine.cache import DiskTier, ScoreCache
from vold_teacher.engine.engine import Engine, EngineLimits
from vold_teacher.types import ScoreOptions, Sequence

BAD = 99


class Fragile(TorchBackend):
    """The torch backend, which a certain id breaks, as a fault of a kernel or a full memory would."""

    calls = 0
    error: Exception = RuntimeError("out of memory")

    def __init__(self, folder):
        super().__init__(folder, limits=DecoderLimits())
        self.begun = threading.Event()

    def score(self, sequences):
        self.calls += 1
        self.begun.set()
        if any(BAD in sequence.completion for sequence in sequences):
            raise self.error
        return super().score(sequences)


def sequence(*completion: int) -> Sequence:
    return Sequence(np.array([5, 6], np.int32), np.array(completion, np.int32), ScoreOptions())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture
def backend(folder):
    return Fragile(folder)


def test_a_sequence_that_breaks_the_backend_costs_no_other(backend):
    async def work(engine):
        mixed = {0: sequence(7, 8), 1: sequence(7, BAD), 2: sequence(9)}
        return await asyncio.gather(
            engine.score(mixed, call=Call()), engine.score({0: sequence(10, 11)}, call=Call())
        ), await engine.score({0: sequence(7, 8)}, call=Call())

    computed = []
    (mixed, other), after = run_engine(backend, work, on_computed=lambda call, positions: computed.append(positions))
    assert isinstance(mixed.scores[1], ServiceError)
    assert mixed.scores[1].code == status_pb2.INTERNAL
    assert [len(mixed.scores[index].logprobs) for index in (0, 2)] == [2, 1]
    assert len(other.scores[0].logprobs) == 2
    np.testing.assert_allclose(mixed.scores[0].logprobs, after.scores[0].logprobs, atol=1e-5)
    assert sum(computed) == 3 + 2 + 3 + 3  # without the sequence that broke it; positions of a sequence run alone
    assert mixed.compute_seconds > 0


def test_what_others_send_does_not_show_in_an_account(backend):
    """The same prompt, other lengths, in one batch: none of it changes what the spy's request is said to have cost."""

    def owned(owner, *completion):
        return replace(sequence(*completion), owner=owner)

    accounts = Counter()

    async def work(engine):
        held = engine.score({0: owned("busy", 20)}, call=Call())  # the others wait behind it, and form one batch
        victims = (), (owned("victim", 7, 8, 9),), tuple(owned("victim", *range(7, 7 + n)) for n in (40, 3, 3))
        costs = []
        for others in victims:
            scored = await asyncio.gather(
                held if not costs else engine.score({0: owned("busy", 20)}, call=Call()),
                engine.score({0: owned("spy", 7, 8, 9), 1: owned("spy", 7, 8)}, call=Call(tenant=Tenant("spy"))),
                *(engine.score({0: other}, call=Call(tenant=Tenant("victim"))) for other in others),
            )
            costs.append((accounts.pop("spy"), scored[1].cached))
        return costs

    def account(call, positions):
        accounts[call.tenant.name] += positions

    alone, *beside = run_engine(backend, work, on_computed=account)
    assert alone[0] > 0
    assert beside == [alone, alone]


def test_a_prompt_is_computed_once_for_one_owner(backend):
    a, b = (replace(sequence(*range(7, 12)), owner=owner) for owner in ("maths", "group:maths"))
    assert [*group_by_prompt([a, b, a]).values()] == [[0, 2], [1]]
    assert backend.score([a] * 8).computed_tokens < backend.score([a] * 4 + [b] * 4).computed_tokens


def test_a_backend_that_is_away_says_so_to_every_caller_at_once(backend):
    backend.error = unavailable("no upstream answers")

    async def work(engine):
        with pytest.raises(ServiceError, match="no upstream answers"):
            await engine.score({0: sequence(7), 1: sequence(BAD)}, call=Call())

    run_engine(backend, work)
    assert backend.calls == 1


def test_a_backend_that_loses_scores_fails_the_request_instead_of_keeping_it(backend):
    real = backend.score

    def short(sequences):
        scored = real(sequences)
        return ScoredBatch(scored.scores[:-1], scored.computed_tokens, scored.real_tokens)

    async def work(engine):
        backend.score = short
        with pytest.raises(ServiceError) as raised:
            await engine.score({0: sequence(7), 1: sequence(8)}, call=Call())
        assert raised.value.code == status_pb2.INTERNAL
        backend.score = real
        return await engine.score({0: sequence(7)}, call=Call())

    assert len(run_engine(backend, work).scores[0].logprobs) == 1


def test_a_fault_of_the_queue_costs_what_is_in_it_and_not_the_service(backend):
    async def work(engine):
        real = engine.queue.next_batch
        for _ in range(3):  # more often than batches fit in at a time

            def broken():
                if len(engine.queue):
                    raise RuntimeError("a fault of ours")
                return []

            engine.queue.next_batch = broken
            with pytest.raises(ServiceError) as raised:
                await engine.score({0: sequence(7)}, call=Call())
            assert raised.value.code == status_pb2.INTERNAL
        engine.queue.next_batch = real
        return await engine.score({0: sequence(7, 8)}, call=Call())

    assert len(run_engine(backend, work).scores[0].logprobs) == 2


def test_a_batch_under_way_at_the_end_is_answered(backend):
    async def work(engine):
        waiting = asyncio.create_task(engine.score({0: sequence(*[7] * 400)}, call=Call()))
        await asyncio.to_thread(backend.begun.wait, 60)
        await engine.stop()
        with pytest.raises(ServiceError) as raised:
            await waiting
        assert raised.value.code == status_pb2.UNAVAILABLE

    async def main():
        engine = Engine(backend, EngineLimits(4000, 1 << 20), ThreadPoolExecutor(1))
        engine.start()
        await asyncio.wait_for(work(engine), 60)

    asyncio.run(main())


def test_no_more_batches_are_under_way_than_the_backend_takes(backend):
    backend.info = replace(backend.info, max_in_flight=3)
    real, under_way, most = backend.score, [], []

    def counted(sequences):
        under_way.append(1)
        most.append(len(under_way))
        scored = real(sequences)
        under_way.pop()
        return scored

    backend.score = counted

    async def work(engine):
        engine.queue._batch_tokens = 50
        await asyncio.gather(*(engine.score({0: sequence(*[7 + index] * 40)}, call=Call()) for index in range(20)))

    run_engine(backend, work)
    assert len(most) == 20
    assert max(most) <= 3


def test_equal_sequences_of_a_request_all_come_from_the_disk(folder, tmp_path):
    sequences = {0: sequence(7, 8), 1: sequence(7, 8), 2: sequence(9)}

    async def work(engine):
        return await engine.score(sequences, call=Call())

    for cached in (1, 3):  # the first time only the double is free
        cache = ScoreCache(0, DiskTier(tmp_path, 1 << 20))
        scored = run_engine(Fragile(folder), work, cache=cache)
        cache.close()
        assert len(scored.cached) == cached
        assert [len(scored.scores[index].logprobs) for index in range(3)] == [2, 2, 1]
