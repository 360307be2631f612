"""Division of a step into optimiser steps and micro-batches: each completion once, for any number of processes."""

from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.processes.ranks import share
from vold_trainer.student.plan import plan_optimiser_steps


@given(count=st.integers(0, 50), size=st.integers(1, 7))
def test_shares_are_contiguous_whole_and_even(count, size):
    shares = [share(count, rank, size) for rank in range(size)]
    assert [index for part in shares for index in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@st.composite
def steps(draw):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=20))
    rows = draw(st.permutations(range(len(lengths))))
    size = draw(st.integers(1, 4))
    owners = draw(st.lists(st.integers(0, size - 1), min_size=len(lengths), max_size=len(lengths)))
    placed = list(zip(sorted(rows), lengths, owners, strict=True))
    return [[(row, length) for row, length, owner in placed if owner == rank] for rank in range(size)]


@given(
    completions=steps(),
    size=st.integers(0, 8),
    micro=st.integers(1, 5),
    seed=st.integers(0, 99),
    equal_counts=st.booleans(),
)
def test_every_completion_is_in_one_micro_batch_of_the_optimiser_step_that_a_single_process_would_take(
    completions, size, micro, seed, equal_counts
):
    settings = {"size": size, "micro": micro, "seed": seed, "equal_counts": equal_counts}
    alone = plan_optimiser_steps([sorted(pair for part in completions for pair in part)], 0, **settings)
    plans = [plan_optimiser_steps(completions, rank, **settings) for rank in range(len(completions))]
    everything = sorted(pair for part in completions for pair in part)
    for number, whole in enumerate(alone):
        updates = [plan[number] for plan in plans]
        planned = sorted(
            completions[rank][index]
            for rank, update in enumerate(updates)
            for rows in update.micro_batches
            for index in rows
        )
        assert planned == sorted(everything[index] for rows in whole.micro_batches for index in rows)
        assert all(len(rows) <= micro for update in updates for rows in update.micro_batches)
        for update in updates:
            assert update.sequences == len(planned)
            assert update.tokens == sum(length for _, length in planned)
            assert update.total_sequences == len(everything)
            assert update.micro_batches
        if equal_counts:
            assert len({len(update.micro_batches) for update in updates}) == 1
    assert all(len(plan) == len(alone) for plan in plans)
