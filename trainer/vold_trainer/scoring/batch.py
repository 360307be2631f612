"""A step's rollouts and their scores as tensors: the input of an objective.

Shapes: P prompts, G completions of a prompt, C completions, T completion positions, N = all completion tokens of a
micro-batch, K ids of a support.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vold_trainer.objectives import Needs, Rollouts, Support
from vold_trainer.objectives.advantages import group_advantages, informative_groups, overlong_penalty, unsolved_groups
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.scores import RolloutScore
from vold_trainer.student.batching import Batch

AwaitScores = Callable[[Iterable[int], Iterable[int]], None]
"""Waits for the teacher's scores of some rows, and for the verifier's verdicts on others."""


@dataclass
class ScoredBatch:
    """rewards_C: the verifier's, NaN where missing. group: G; the completions of a prompt are neighbours.
    advantage_std: divide by the group's standard deviation. overlong: the share of max_tokens in which a completion
    loses reward (DAPO). mask_truncated: completions that reached max_tokens have no loss. await_scores: waits for
    scores that are pending; None if no score is pending.

    The values of a completion are undefined until `wait` has returned for it.
    """

    rollouts: list[Rollout]
    scores: list[RolloutScore]
    group: int
    advantage_std: bool = True
    max_tokens: int = 0
    overlong: float = 0.0
    mask_truncated: bool = False
    await_scores: AwaitScores | None = None
    rewards_C: Tensor = field(init=False)
    advantages_C: Tensor = field(init=False)
    correct_C: Tensor = field(init=False)
    rewarded_C: Tensor = field(init=False)
    unsolved_C: Tensor = field(init=False)
    _settled: set[int] = field(init=False, default_factory=set)
    """The groups whose scores have been waited for: their values are final."""

    def __post_init__(self) -> None:
        count = len(self.rollouts)
        self.rewards_C, self.advantages_C = torch.empty(count), torch.empty(count)
        self.correct_C, self.rewarded_C, self.unsolved_C = (torch.empty(count, dtype=torch.bool) for _ in range(3))
        self._compute_advantages(range(count // self.group))

    def wait(self, rows: Sequence[int] | None = None) -> None:
        """Wait until these completions (None: all) have their teacher's scores, and their whole groups have rewards.

        Raises RunError if a score cannot come.
        """
        if self.await_scores is None:
            return
        teacher_rows = range(len(self.rollouts)) if rows is None else rows
        groups = sorted({row // self.group for row in teacher_rows})
        verifier_rows = (row for group in groups for row in range(group * self.group, (group + 1) * self.group))
        self.await_scores(
            [self.rollouts[row].row for row in teacher_rows], [self.rollouts[row].row for row in verifier_rows]
        )
        if rows is None:
            self.await_scores = None
        self._compute_advantages([group for group in groups if group not in self._settled])
        self._settled.update(groups)

    def _compute_advantages(self, groups: Sequence[int]) -> None:
        """Set the values of these groups from rewards and verdicts. They depend on nothing but the group, so a
        micro-batch computes its own groups alone.
        """
        if not groups:
            return
        rows = [row for group in groups for row in range(group * self.group, (group + 1) * self.group)]
        scores = [self.scores[row] for row in rows]
        rewards_C = torch.tensor([np.nan if s.reward is None else s.reward for s in scores], dtype=torch.float32)
        correct_C = torch.tensor([bool(score.correct) for score in scores], dtype=torch.bool)
        shaped_C = rewards_C
        if self.overlong:
            lengths_C = torch.tensor([len(self.rollouts[row].ids) for row in rows])
            shaped_C = rewards_C + overlong_penalty(lengths_C, self.max_tokens, self.overlong)
        rewards_PG, correct_PG = rewards_C.view(-1, self.group), correct_C.view(-1, self.group)
        index = torch.tensor(rows)
        self.rewards_C[index] = rewards_C
        self.correct_C[index] = correct_C
        self.rewarded_C[index] = ~rewards_C.isnan()
        self.advantages_C[index] = group_advantages(
            shaped_C.view(-1, self.group), divide_by_std=self.advantage_std
        ).flatten()
        self.unsolved_C[index] = unsolved_groups(rewards_PG, correct_PG).repeat_interleave(self.group)

    @property
    def informative(self) -> Tensor:
        """bool [P]: whether a group has correct and wrong completions."""
        shape = (len(self.rollouts) // self.group, self.group)
        return informative_groups(self.rewards_C.view(shape), self.correct_C.view(shape))

    def support(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(ids_NK int64, the teacher's log-probabilities float32 [N, K], NaN where an id is masked)."""
        supports = [self.scores[row].support_ids for row in rows]
        width = max((ids.shape[1] for ids in supports if ids is not None), default=2)
        ids, logprobs = [], []
        for row in rows:
            score, length = self.scores[row], len(self.rollouts[row].ids)
            row_ids, row_logprobs = torch.zeros(length, width, dtype=torch.long), torch.full((length, width), np.nan)
            if score.support_ids is not None and score.support_logprobs is not None:
                row_ids[:, : score.support_ids.shape[1]] = torch.from_numpy(score.support_ids)
                row_logprobs[:, : score.support_logprobs.shape[1]] = torch.from_numpy(score.support_logprobs)
            ids.append(row_ids)
            logprobs.append(row_logprobs)
        return torch.cat(ids), torch.cat(logprobs)

    def inputs(
        self,
        rows: Sequence[int],
        batch: Batch,
        logprobs_N: Tensor,
        old_N: Tensor | None,
        needs: Needs,
        support: tuple[Tensor, Tensor] | None,
        reference_N: Tensor | None = None,
        *,
        step: int,
        max_tokens: int,
    ) -> Rollouts:
        """The objective's input for these rows.

        logprobs_N: the student's, with gradient. old_N: the student's before the step's first update; None if this is
        the first update. support: (the student's log-probabilities, the teacher's), both [N, K], if `needs` has one.
        reference_N: the reference's log-probabilities, if it is not a service.
        """
        device = logprobs_N.device
        logprobs_CT = batch.pad(logprobs_N)
        index = torch.tensor(rows)
        teacher_CT, known_CT, entropy_CT, rollout_CT, support_CTK = None, None, None, None, None
        reference_CT, reference_known_CT = None, None
        if needs.teacher:
            teacher_N = torch.cat([teacher_logprobs(self.scores[row], self.rollouts[row]) for row in rows]).to(device)
            known_CT = batch.pad(teacher_N, float("nan")).isfinite()
            teacher_CT = batch.pad(teacher_N)
        if needs.entropy:
            entropies = [_tensor_or_nan(self.scores[row].entropy, self.rollouts[row]) for row in rows]
            entropy_CT = batch.pad(torch.cat(entropies).to(device), float("nan"))
        if needs.rollout_logprobs:
            sampled = [_tensor_or_nan(self.rollouts[row].logprobs, self.rollouts[row]) for row in rows]
            rollout_CT = batch.pad(torch.cat(sampled).to(device), float("nan"))
        if support is not None:
            student_NK, teacher_NK = support[0], support[1].to(device)
            support_CTK = Support(
                student_CTK=batch.pad(student_NK),
                teacher_CTK=batch.pad(teacher_NK.nan_to_num(0.0)),
                mask_CTK=batch.pad(teacher_NK, float("nan")).isfinite(),
            )
        if needs.reference:
            if reference_N is None:
                served = [_tensor_or_nan(self.scores[row].reference_logprobs, self.rollouts[row]) for row in rows]
                reference_N = torch.cat(served)
            reference_N = reference_N.to(device)
            reference_CT = batch.pad(reference_N)
            reference_known_CT = batch.pad(reference_N, float("nan")).isfinite()
        rewarded_C = self.rewarded_C[index].to(device)
        if self.mask_truncated:
            whole_C = torch.tensor([not self.rollouts[row].truncated for row in rows], device=device)
            rewarded_C = rewarded_C & whole_C
            if known_CT is not None:
                known_CT = known_CT & whole_C.unsqueeze(-1)
            if reference_known_CT is not None:
                reference_known_CT = reference_known_CT & whole_C.unsqueeze(-1)
            if support_CTK is not None:
                support_CTK = replace(support_CTK, mask_CTK=support_CTK.mask_CTK & whole_C.view(-1, 1, 1))
        return Rollouts(
            logprobs_CT=logprobs_CT,
            old_logprobs_CT=logprobs_CT.detach() if old_N is None else batch.pad(old_N.to(device)),
            mask_CT=batch.mask_BT,
            advantages_C=self.advantages_C[index].to(device),
            rewarded_C=rewarded_C,
            correct_C=self.correct_C[index].to(device),
            rewards_C=self.rewards_C[index].to(device),
            unsolved_C=self.unsolved_C[index].to(device),
            teacher_logprobs_CT=teacher_CT,
            teacher_mask_CT=known_CT,
            teacher_entropy_CT=entropy_CT,
            rollout_logprobs_CT=rollout_CT,
            support=support_CTK,
            reference_logprobs_CT=reference_CT,
            reference_mask_CT=reference_known_CT,
            step=step,
            max_tokens=max_tokens,
        )


def teacher_logprobs(score: RolloutScore, rollout: Rollout) -> Tensor:
    """float32 [T]: the teacher's log-probabilities of a rollout, NaN where they are missing or masked."""
    return _tensor_or_nan(score.teacher_logprobs, rollout)


def _tensor_or_nan(values: np.ndarray | None, rollout: Rollout) -> Tensor:
    return torch.full((len(rollout.ids),), float("nan")) if values is None else torch.from_numpy(values)
