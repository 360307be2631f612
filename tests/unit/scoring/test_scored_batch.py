"""A step's scores as tensors, while they come in."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.data import Example
from vold_trainer.objectives import Grpo, Kdrl, Opd, OpdTopK, Vold
from vold_trainer.objectives.advantages import group_advantages, overlong_penalty, unsolved_groups
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scores import RolloutScore

MAX_TOKENS = 8
FIELDS = ("rewards_C", "advantages_C", "correct_C", "rewarded_C", "unsolved_C")


def all_at_once(batch: ScoredBatch) -> dict[str, torch.Tensor]:
    """The values of all groups, computed together."""
    rewards_C = torch.tensor([np.nan if s.reward is None else s.reward for s in batch.scores], dtype=torch.float32)
    correct_C = torch.tensor([bool(score.correct) for score in batch.scores])
    lengths_C = torch.tensor([len(rollout.ids) for rollout in batch.rollouts])
    shaped_C = rewards_C + overlong_penalty(lengths_C, MAX_TOKENS, batch.overlong) if batch.overlong else rewards_C
    shape = (len(batch.rollouts) // batch.group, batch.group)
    return {
        "rewards_C": rewards_C,
        "advantages_C": group_advantages(shaped_C.view(shape), divide_by_std=batch.advantage_std).flatten(),
        "correct_C": correct_C,
        "rewarded_C": ~rewards_C.isnan(),
        "unsolved_C": unsolved_groups(rewards_C.view(shape), correct_C.view(shape)).repeat_interleave(batch.group),
    }


def make_batch(lengths, group, scores, await_scores, **options) -> ScoredBatch:
    example = Example("a", ({"role": "user", "content": "?"},), "1")
    rollouts = [Rollout(row, example, (1,), (2,) * length, "", False) for row, length in enumerate(lengths)]
    return ScoredBatch(rollouts, scores, group, max_tokens=MAX_TOKENS, await_scores=await_scores, **options)


@st.composite
def steps(draw):
    """(lengths, group, verdicts, rows of each micro-batch): every row is in one micro-batch."""
    group = draw(st.integers(1, 5))
    count = group * draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, MAX_TOKENS), min_size=count, max_size=count))
    reward = st.one_of(st.none(), st.floats(-2, 2, width=32), st.sampled_from([0.0, 1.0]))
    verdicts = draw(st.lists(st.tuples(reward, st.booleans()), min_size=count, max_size=count))
    order = draw(st.permutations(range(count)))
    micro = draw(st.integers(1, count))
    return lengths, group, verdicts, [order[start : start + micro] for start in range(0, count, micro)]


@given(steps(), st.booleans(), st.sampled_from([0.0, 0.5]))
def test_groups_that_come_one_after_another_have_the_values_of_all_at_once(step, advantage_std, overlong):
    lengths, group, verdicts, micro_batches = step
    scores = [RolloutScore() for _ in lengths]

    def await_scores(teacher_rows, verifier_rows):
        for row in verifier_rows:
            scores[row].reward, scores[row].correct = verdicts[row][0], verdicts[row][1]

    batch = make_batch(lengths, group, scores, await_scores, advantage_std=advantage_std, overlong=overlong)
    before = all_at_once(batch)
    assert all(torch.equal(getattr(batch, n).nan_to_num(9.0), before[n].nan_to_num(9.0)) for n in FIELDS)
    for rows in micro_batches:
        batch.wait(rows)
        now = all_at_once(batch)
        for name in FIELDS:
            assert torch.equal(getattr(batch, name)[rows].nan_to_num(9.0), now[name][rows].nan_to_num(9.0)), name
    batch.wait()
    after = all_at_once(batch)
    assert all(torch.equal(getattr(batch, n).nan_to_num(9.0), after[n].nan_to_num(9.0)) for n in FIELDS)


class CountingList(list):
    """Counts how often an element is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_a_step_reads_each_score_once_however_many_micro_batches_wait():
    count = 64
    scores = CountingList(RolloutScore(reward=1.0, correct=True) for _ in range(count))
    batch = make_batch([3] * count, 4, scores, lambda teacher_rows, verifier_rows: None)
    scores.reads = 0
    for row in range(count):
        batch.wait([row])
        batch.wait([row])
    batch.wait()
    assert scores.reads == count


def test_a_batch_without_completions_has_no_values():
    batch = make_batch([], 4, [], lambda teacher_rows, verifier_rows: None)
    batch.wait()
    assert all(len(getattr(batch, name)) == 0 for name in FIELDS)


@given(
    cut=st.lists(st.booleans(), min_size=4, max_size=4),
    objective=st.sampled_from([Grpo(), Vold(), Vold(masked=False), Opd(), OpdTopK(), Kdrl()]),
)
def test_a_completion_that_was_cut_can_be_masked_for_every_term(cut, objective):
    """The others have the gradient that they have without the option, and the group's advantages do not change."""
    lengths = [3, 5, 2, 4]
    scores = [
        RolloutScore(
            teacher_logprobs=np.linspace(-2, -1, n, dtype=np.float32),
            support_ids=np.tile(np.arange(3), (n, 1)),
            support_logprobs=np.log(np.tile(np.float32([0.5, 0.3, 0.2]), (n, 1))),
            reward=float(row % 2),
            correct=row % 2 == 1,
        )
        for row, n in enumerate(lengths)
    ]
    example = Example("a", ({"role": "user", "content": "?"},), "1")
    rollouts = [Rollout(r, example, (1,), (2,) * n, "", cut[r]) for r, n in enumerate(lengths)]
    gradients = {}
    for mask in (False, True):
        scored = ScoredBatch(rollouts, scores, 2, max_tokens=MAX_TOKENS, mask_truncated=mask)
        logprobs_N = torch.full((sum(lengths),), -0.7, requires_grad=True)
        student_NK = torch.tensor([0.2, 0.3, 0.5]).log().repeat(sum(lengths), 1).requires_grad_()
        needs = replace(objective.needs, teacher=True)
        support = (student_NK, scored.support(range(4))[1])
        rows = scored.inputs(
            range(4), padding(lengths), logprobs_N, None, needs, support, step=0, max_tokens=MAX_TOKENS
        )
        assert torch.equal(rows.advantages_C, scored.advantages_C)
        loss = objective(rows).loss + 0 * logprobs_N.sum() + 0 * student_NK.sum()
        gradients[mask] = torch.autograd.grad(loss, (logprobs_N, student_NK))
    cut_N = torch.tensor(cut).repeat_interleave(torch.tensor(lengths))
    for learned, masked in zip(gradients[False], gradients[True], strict=True):
        assert not masked[cut_N].any()
        assert torch.equal(masked[~cut_N], learned[~cut_N])


def padding(lengths: list[int]) -> Any:
    """What `inputs` uses of a batch: tokens as rows of completions, padded right."""
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)

    def pad(values, filler=0.0):
        shape = (*mask_BT.shape, *values.shape[1:])
        padded = torch.full(shape, filler, dtype=values.dtype)
        padded[mask_BT] = values
        return padded

    return SimpleNamespace(mask_BT=mask_BT, pad=pad)
