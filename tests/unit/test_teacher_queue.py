"""The queue of the teacher: nothing lost, nothing starved, budgets kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError
from vold_teacher.batch import Size, by_prompt
from vold_teacher.engine.queue import Entry, Job, ScoreQueue
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


def cost(batch: list[Entry], shares: bool) -> int:
    sequences = [item for entry in batch for item in entry.sequences.values()]
    groups = by_prompt(sequences).values()
    return Size.of([sequences[index] for index in group] for group in groups).tokens(shares)


@settings(deadline=None)
@given(requests=REQUESTS, budget=st.integers(1, 400), shares=st.booleans())
def test_every_sequence_comes_out_once_within_the_budget(requests, budget, shares):
    queue = ScoreQueue(batch_tokens=budget, max_tokens=1 << 20, shares_prompts=shares)
    expected = set()
    for number, (priority, items) in enumerate(requests):
        job = Job(priority=priority)
        queue.put(job, sequences_of(items), tokens_per_second=1.0)
        expected |= {(id(job), index) for index in range(len(items))}
        requests[number] = job  # keeps the job alive, so that its id stays its own
    seen = []
    while batch := queue.next_batch():
        assert len({entry.job.priority for entry in batch}) == 1
        assert len(batch) == 1 or cost(batch, shares) <= budget
        seen += [(id(entry.job), index) for entry in batch for index in entry.sequences]
    assert sorted(seen) == sorted(expected)
    assert queue.tokens == 0
    assert not queue.jobs()


@settings(deadline=None)
@given(requests=REQUESTS, leaving=st.sets(st.integers(0, 7)))
def test_dropped_jobs_are_never_computed_and_the_others_lose_nothing(requests, leaving):
    queue = ScoreQueue(batch_tokens=60, max_tokens=1 << 20, shares_prompts=True)
    jobs = [Job(priority=priority) for priority, _ in requests]
    for job, (_, items) in zip(jobs, requests, strict=True):
        queue.put(job, sequences_of(items), tokens_per_second=1.0)
    counts = {id(job): 0 for job in jobs}
    for entry in queue.next_batch():
        counts[id(entry.job)] += len(entry.sequences)
    before = dict(counts)
    for index in leaving & set(range(len(jobs))):
        queue.drop(jobs[index])
    while batch := queue.next_batch():
        for entry in batch:
            counts[id(entry.job)] += len(entry.sequences)
    for index, job in enumerate(jobs):
        assert counts[id(job)] == (before[id(job)] if index in leaving else len(requests[index][1]))
    assert queue.tokens == 0


def test_a_small_request_does_not_wait_behind_the_whole_of_a_large_one():
    queue = ScoreQueue(batch_tokens=100, max_tokens=1 << 20, shares_prompts=True)
    large, small = Job(), Job()
    queue.put(large, {index: sequence(index, 40, 11) for index in range(200)}, tokens_per_second=1.0)
    assert {entry.job for entry in queue.next_batch()} == {large}
    queue.put(small, {0: sequence(7, 10, 5)}, tokens_per_second=1.0)
    # Lengths differ, so they do not mix; still it comes within as many batches as the window has.
    assert any(small in {entry.job for entry in queue.next_batch()} for _ in range(4))


def test_nothing_starves_among_endless_arrivals_of_its_priority():
    queue = ScoreQueue(batch_tokens=50, max_tokens=1 << 20, shares_prompts=True)
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
    queue = ScoreQueue(batch_tokens=100, max_tokens=1 << 20, shares_prompts=True)
    queue.put(Job(), {index: sequence(index % 2, 40, 6) for index in range(8)}, tokens_per_second=1.0)
    assert queue.tokens == 2 * (40 + 4 * 5)
    (first,), (second,) = queue.next_batch(), queue.next_batch()
    assert sorted([sorted(first.sequences), sorted(second.sequences)]) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_full_queue_says_when_to_come_back():
    queue = ScoreQueue(batch_tokens=100, max_tokens=100, shares_prompts=True)
    queue.put(Job(), {0: sequence(1, 50, 31)}, tokens_per_second=10.0)
    with pytest.raises(ServiceError) as raised:
        queue.put(Job(), {0: sequence(1, 50, 11)}, tokens_per_second=10.0)
    assert raised.value.code == status_pb2.RESOURCE_EXHAUSTED
    assert raised.value.retry_seconds == pytest.approx(4.0)
    with pytest.raises(ServiceError, match="split the request") as raised:
        queue.put(Job(), {0: sequence(1, 90, 31)}, tokens_per_second=10.0)
    assert raised.value.code == status_pb2.INVALID_ARGUMENT
