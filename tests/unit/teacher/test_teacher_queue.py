"""The queue of the teacher: nothing lost, nothing starved, budgets kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError
from vold_service.tenants import Tenant
from vold_teacher.batch import BatchSize, Layout, group_by_prompt
from vold_teacher.engine.queue import WINDOW_BATCHES, Entry, Job, ScoreQueue
from vold_teacher.types import ScoreOptions, Sequence

OPTIONS = ScoreOptions()


def sequence(prompt: int, length: int, completion: int) -> Sequence:
    return Sequence(np.full(length, prompt, np.int32), np.zeros(completion, np.int32), OPTIONS)


REQUESTS = st.lists(
    st.tuples(
        st.integers(-1, 1),
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=8,
)


def sequences_of(items: list[tuple[int, int, int]]) -> dict[int, Sequence]:
    return {index: sequence(*item) for index, item in enumerate(items)}


def cost(batch: list[Entry], layout: Layout) -> int:
    sequences = [item for entry in batch for item in entry.sequences.values()]
    groups = group_by_prompt(sequences).values()
    return BatchSize.of_groups([sequences[index] for index in group] for group in groups).tokens(layout)


@settings(deadline=None)
@given(requests=REQUESTS, budget=st.integers(1, 400), layout=st.sampled_from(Layout))
def test_every_sequence_comes_out_once_within_the_budget(requests, budget, layout):
    queue = ScoreQueue(batch_tokens=budget, max_tokens=1 << 20, layout=layout)
    expected = set()
    for number, (priority, items) in enumerate(requests):
        job = Job(priority=priority)
        queue.put(job, sequences_of(items), tokens_per_second=1.0)
        expected |= {(id(job), index) for index in range(len(items))}
        requests[number] = job  # keeps the job alive, so that its id stays its own
    seen = []
    while batch := queue.next_batch():
        least = min(entry.job.priority for entry in batch)
        assert least >= max((job.priority for job in queue.jobs()), default=least)
        assert len(batch) == 1 or cost(batch, layout) <= budget
        seen += [(id(entry.job), index) for entry in batch for index in entry.sequences]
    assert sorted(seen) == sorted(expected)
    assert queue.tokens == 0
    assert not queue.jobs()


@settings(deadline=None)
@given(requests=REQUESTS, leaving=st.sets(st.integers(0, 7)))
def test_dropped_jobs_are_never_computed_and_the_others_lose_nothing(requests, leaving):
    queue = ScoreQueue(batch_tokens=60, max_tokens=1 << 20, layout=Layout.SHARED)
    jobs = [Job(priority=priority) for priority, _ in requests]
    for job, (_, items) in zip(jobs, requests, strict=True):
        queue.put(job, sequences_of(items), tokens_per_second=1.0)
    counts = {id(job): 0 for job in jobs}
    for entry in queue.next_batch():
        counts[id(entry.job)] += len(entry.sequences)
    before = dict(counts)
    for index in leaving & set(range(len(jobs))):
        queue.cancel(jobs[index])
    while batch := queue.next_batch():
        for entry in batch:
            counts[id(entry.job)] += len(entry.sequences)
    for index, job in enumerate(jobs):
        assert counts[id(job)] == (before[id(job)] if index in leaving else len(requests[index][1]))
    assert queue.tokens == 0


def test_a_small_request_does_not_wait_behind_the_whole_of_a_large_one():
    queue = ScoreQueue(batch_tokens=100, max_tokens=1 << 20, layout=Layout.SHARED)
    large, small = Job(), Job()
    queue.put(large, {index: sequence(index, 40, 11) for index in range(200)}, tokens_per_second=1.0)
    assert {entry.job for entry in queue.next_batch()} == {large}
    queue.put(small, {0: sequence(7, 10, 5)}, tokens_per_second=1.0)
    # Lengths differ, so they do not mix; still it comes within as many batches as the window has.
    assert any(small in {entry.job for entry in queue.next_batch()} for _ in range(4))


def test_nothing_starves_among_endless_arrivals_of_its_priority():
    queue = ScoreQueue(batch_tokens=50, max_tokens=1 << 20, layout=Layout.SHARED)
    waiting = Job()
    queue.put(waiting, {index: sequence(1, 20, 30) for index in range(4)}, tokens_per_second=1.0)
    served = 0
    for _ in range(60):
        queue.put(Job(), {0: sequence(2, 5, 5)}, tokens_per_second=1.0)
        served += sum(len(entry.sequences) for entry in queue.next_batch() if entry.job is waiting)
        if served == 4:
            break
    assert served == 4


def test_completions_of_a_prompt_stay_together_where_that_pays():
    queue = ScoreQueue(batch_tokens=100, max_tokens=1 << 20, layout=Layout.SHARED)
    queue.put(Job(), {index: sequence(index % 2, 40, 6) for index in range(8)}, tokens_per_second=1.0)
    assert queue.tokens == 2 * (40 + 4 * 5)
    (first,), (second,) = queue.next_batch(), queue.next_batch()
    assert sorted([sorted(first.sequences), sorted(second.sequences)]) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_full_queue_says_when_to_come_back():
    queue = ScoreQueue(batch_tokens=100, max_tokens=100, layout=Layout.SHARED)
    queue.put(Job(), {0: sequence(1, 50, 31)}, tokens_per_second=10.0)
    with pytest.raises(ServiceError) as raised:
        queue.put(Job(), {0: sequence(1, 50, 11)}, tokens_per_second=10.0)
    assert raised.value.code == status_pb2.RESOURCE_EXHAUSTED
    assert raised.value.retry_seconds == pytest.approx(4.0)
    with pytest.raises(ServiceError, match="split the request") as raised:
        queue.put(Job(), {0: sequence(1, 90, 31)}, tokens_per_second=10.0)
    assert raised.value.code == status_pb2.INVALID_ARGUMENT


@settings(deadline=None, max_examples=15)
@given(
    weights=st.lists(st.sampled_from([1.0, 1.0, 2.0]), min_size=2, max_size=4),
    longest=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=4, max_size=4),
    requests=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    visits=st.integers(0, 20),
    layout=st.sampled_from(Layout),
    seed=st.integers(0, 1000),
)
def test_backlogged_tenants_get_tokens_by_their_weights(weights, longest, requests, visits, layout, seed):
    """Whatever the sizes of their requests, and whoever comes and goes beside them."""
    rng = np.random.default_rng(seed)
    queue = ScoreQueue(batch_tokens=100, max_tokens=1 << 30, layout=layout)
    tenants = [Tenant(str(index), weight=weight) for index, weight in enumerate(weights)]
    visitor = Tenant("visitor", weight=3.0)

    def arrive(tenant: Tenant, size: int, most: tuple[int, int]) -> None:
        lengths = zip(rng.integers(5, 6 + most[0], size), rng.integers(5, 6 + most[1], size), strict=True)
        items = {index: sequence(index % 3, int(prompt), int(length)) for index, (prompt, length) in enumerate(lengths)}
        queue.put(Job(tenant, priority=int(rng.integers(0, 2))), items, tokens_per_second=1.0)

    served = dict.fromkeys((tenant.name for tenant in tenants), 0)
    step = 0
    # What a batch looks ahead is the most by which a tenant may be behind; it must be small beside what each gets.
    while min(served.values()) < 6_000:
        for tenant, size, most in zip(tenants, requests, longest, strict=False):
            while queue.tokens_by_tenant().get(tenant.name, 0) < 1000:
                arrive(tenant, size, most)
        if visits and step % visits == 0:
            arrive(visitor, 5, (30, 30))
        for entry in queue.next_batch():
            if entry.job.tenant is not visitor:
                served[entry.job.tenant.name] += entry.tokens
        step += 1
        assert step < 3000, f"somebody is not served: {served}"
    by_weight = [served[tenant.name] / tenant.weight for tenant in tenants]
    assert max(by_weight) <= 1.1 * min(by_weight)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(("runs", "budget"), [(4, 1000), (24, 4000)])
def test_runs_that_send_a_step_and_wait_for_it_get_alike(layout, runs, budget):
    """All that waits is little more than a few batches, so that a batch could be anybody's."""
    rng = np.random.default_rng(0)
    queue = ScoreQueue(batch_tokens=budget, max_tokens=1 << 30, layout=layout)
    left: dict[Job, int] = {}
    served = dict.fromkeys(range(runs), 0)

    def step(run: int) -> None:
        job = Job(Tenant(str(run)))
        lengths = rng.integers(10, 31, 16)
        items = {index: sequence(4 * run + index // 4, 15, int(length)) for index, length in enumerate(lengths)}
        queue.put(job, items, tokens_per_second=1.0)
        left[job] = len(items)

    for run in served:
        step(run)
    while min(served.values()) < 20_000:
        for entry in queue.next_batch():
            run = int(entry.job.tenant.name)
            served[run] += entry.tokens
            left[entry.job] -= len(entry.sequences)
            if not left[entry.job]:
                queue.cancel(entry.job)
                step(run)
        assert max(served.values()) < 50_000, f"somebody is left behind: {served}"
    assert max(served.values()) <= 1.1 * min(served.values())


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=1, max_size=4),
    length=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    own=st.booleans(),
)
def test_nothing_starves_whatever_arrives_without_end(lengths, length, own):
    """Beside other tenants, and (`own`) beside endless requests of its own tenant too."""
    queue = ScoreQueue(batch_tokens=300, max_tokens=1 << 30, layout=Layout.SHARED)
    me = Tenant("me", weight=0.5)
    waiting = Job(me)
    queue.put(waiting, {0: sequence(1, *length)}, tokens_per_second=1.0)
    for _ in range(200):
        for index, (prompt, completion) in enumerate(lengths):
            tenant = me if own and not index else Tenant(f"other {index}", weight=4.0)
            queue.put(Job(tenant), {item: sequence(2, prompt, completion) for item in range(8)}, tokens_per_second=1.0)
        if any(entry.job is waiting for entry in queue.next_batch()):
            return
    pytest.fail("it was never served")


def test_a_tenant_that_comes_back_neither_owes_nor_is_owed():
    queue = ScoreQueue(batch_tokens=100, max_tokens=1 << 20, layout=Layout.SEPARATE)
    early, late = Tenant("early"), Tenant("late")
    queue.put(Job(early), {index: sequence(1, 50, 51) for index in range(50)}, tokens_per_second=1.0)
    for _ in range(20):
        queue.next_batch()
    queue.put(Job(late), {index: sequence(2, 50, 51) for index in range(10)}, tokens_per_second=1.0)
    turns = [entry.job.tenant.name for _ in range(20) for entry in queue.next_batch()]
    assert sorted(turns) == ["early"] * 10 + ["late"] * 10
    assert all({turns[index], turns[index + 1]} == {"early", "late"} for index in range(0, 20, 2))


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=60),
    layout=st.sampled_from(Layout),
)
def test_padding_stays_small_on_mixed_lengths(lengths, layout):
    queue = ScoreQueue(batch_tokens=4000, max_tokens=1 << 20, layout=layout)
    sequences = {index: sequence(index % 7, *length) for index, length in enumerate(lengths)}
    queue.put(Job(), sequences, tokens_per_second=1.0)
    while batch := queue.next_batch():
        size = sum((entry.size for entry in batch[1:]), batch[0].size)
        own = sum(entry.size.padding(layout) for entry in batch)
        assert size.padding(layout) <= max(256, 0.1 * size.tokens(layout), own)


LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=4)
SHARES = st.sampled_from([0.5, 1.0, 3.0])


@settings(deadline=None, max_examples=15)
@given(
    weights=st.tuples(SHARES, SHARES, SHARES),
    lengths=st.tuples(LENGTHS, LENGTHS, LENGTHS),
    decoded=st.integers(0, 200),
    layout=st.sampled_from(Layout),
)
def test_over_any_window_backlogged_tenants_differ_by_two_batches_and_entries(weights, lengths, decoded, layout):
    """decoded: positions that the first tenant's completions take between two batches, on the same account."""
    batch = 200
    queue = ScoreQueue(batch_tokens=batch, max_tokens=1 << 30, layout=layout)
    tenants = [Tenant(str(number), weight=weight) for number, weight in enumerate(weights)]
    largest = max(BatchSize.of_sequence(sequence(0, *each)).tokens(layout) for own in lengths for each in own)
    heights = dict.fromkeys((tenant.name for tenant in tenants), 0.0)
    lows = {(a, b): 0.0 for a in heights for b in heights if a != b}
    prompt = 0
    for _ in range(30):
        for tenant, own in zip(tenants, lengths, strict=True):
            while queue.tokens_by_tenant().get(tenant.name, 0) < 8 * batch:
                prompt += 1  # no prompts are shared, so that the largest entry is known
                items = {index: sequence(prompt + index, *each) for index, each in enumerate(own)}
                queue.put(Job(tenant), items, tokens_per_second=1.0)
                prompt += len(items)
        if queue.claim() == queue.share.claim(tenants[0]):
            queue.share.charge(tenants[0], decoded)
            heights["0"] += decoded / weights[0]
        for entry in queue.next_batch():
            heights[entry.job.tenant.name] += entry.tokens / entry.job.tenant.weight
        for (a, b), low in lows.items():
            difference = heights[a] - heights[b]
            lows[a, b] = min(low, difference)
            bound = 2 * (batch + max(largest, decoded)) / min(weights[int(a)], weights[int(b)])
            assert difference - lows[a, b] <= bound


@settings(deadline=None, max_examples=40)
@given(
    weights=st.tuples(SHARES, SHARES, SHARES),
    own=LENGTHS,
    others=st.tuples(LENGTHS, LENGTHS),
    before=st.integers(0, 20),
    jobs=st.integers(1, 8),
    layout=st.sampled_from(Layout),
)
def test_an_honest_request_is_done_within_its_bound(weights, own, others, before, jobs, layout):
    """However many requests the others split their work into, and whatever priorities they give them."""
    batch = 200
    queue = ScoreQueue(batch_tokens=batch, max_tokens=1 << 30, layout=layout)
    me, *rest = (Tenant(str(number), weight=weight) for number, weight in enumerate(weights))

    def computed() -> int:
        for tenant, lengths in zip(rest, others, strict=True):
            while queue.tokens_by_tenant().get(tenant.name, 0) < 8 * batch:
                for job in range(jobs):
                    items = {index: sequence(index % 3, *each) for index, each in enumerate(lengths)}
                    queue.put(Job(tenant, priority=job), items, tokens_per_second=1.0)
        return sum(entry.tokens for entry in queue.next_batch())

    for _ in range(before):
        computed()
    mine = Job(me)
    queue.put(mine, {index: sequence(9, *each) for index, each in enumerate(own)}, tokens_per_second=1.0)
    tokens = queue.tokens_by_tenant()[me.name]
    spent = 0
    while mine in queue.jobs():
        spent += computed()
    largest = max(BatchSize.of_sequence(sequence(0, *each)).tokens(layout) for lengths in others for each in lengths)
    largest = max(largest, batch)  # completions of one prompt may fill a batch
    assert spent <= tokens * sum(weights) / weights[0] + (WINDOW_BATCHES + 1) * batch + 2 * largest
