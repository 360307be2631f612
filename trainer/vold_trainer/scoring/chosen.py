"""Which completions a teacher with `only: used` is asked for: those whose scores have a part in the loss.

An objective that masks its teacher's term by verdict never reads the teacher's scores of the others. To leave these out
takes the verdicts before the requests to the teacher, so the teacher begins later than one that scores everything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from vold_trainer.objectives import Objective
from vold_trainer.objectives.advantages import unsolved_groups
from vold_trainer.objectives.base import Verdicts
from vold_trainer.rollout.base import Rollout


class Verdict(Protocol):
    """What `RolloutScore` has of the verifier."""

    reward: float | None
    correct: bool | None


@dataclass(frozen=True)
class UsedScores:
    """objective: of the run. group: completions of a prompt, whose rows are neighbours."""

    objective: Objective
    group: int

    @property
    def waits_for_groups(self) -> bool:
        """Whether a completion's mask depends on the other completions of its group."""
        return self.objective.teacher_mask_by == "group"

    @property
    def waits_for_verdicts(self) -> bool:
        return self.objective.teacher_mask_by != "nothing"

    def rows(self, rollouts: Sequence[Rollout], known: Mapping[int, object]) -> list[int]:
        """The rows, among those that are known, whose verdicts decide about these rollouts."""
        if not self.waits_for_verdicts:
            return []
        if not self.waits_for_groups:
            return [rollout.row for rollout in rollouts]
        groups = {rollout.row // self.group for rollout in rollouts}
        return sorted(row for row in known if row // self.group in groups)

    def choose(self, rollouts: Sequence[Rollout], verdicts: Mapping[int, Verdict]) -> list[Rollout]:
        """The rollouts whose scores are used. verdicts: by row, with those of `rows`."""
        if self.objective.truncated == "mask":
            rollouts = [rollout for rollout in rollouts if not rollout.truncated]
        if not rollouts or not self.waits_for_verdicts:
            return list(rollouts)
        used_C = self.objective.teacher_mask(self._verdicts(rollouts, verdicts))
        return [rollout for rollout, used in zip(rollouts, used_C.tolist(), strict=True) if used]

    def _verdicts(self, rollouts: Sequence[Rollout], verdicts: Mapping[int, Verdict]) -> Verdicts:
        own = [verdicts[rollout.row] for rollout in rollouts]
        rewards_C = torch.tensor([np.nan if each.reward is None else each.reward for each in own])
        correct_C = torch.tensor([bool(each.correct) for each in own])
        unsolved_C = None
        if self.waits_for_groups:
            unsolved_C = torch.tensor([self._is_unsolved(rollout.row // self.group, verdicts) for rollout in rollouts])
        return Verdicts(~rewards_C.isnan(), correct_C, rewards_C, unsolved_C)

    def _is_unsolved(self, number: int, verdicts: Mapping[int, Verdict]) -> bool:
        rows = range(number * self.group, (number + 1) * self.group)
        group = [verdicts[row] for row in rows if row in verdicts]
        if len(group) < self.group:  # a row at fault: the group has no part in the step
            return False
        rewards_PG = torch.tensor([[np.nan if each.reward is None else each.reward for each in group]])
        correct_PG = torch.tensor([[bool(each.correct) for each in group]])
        return bool(unsolved_groups(rewards_PG, correct_PG))
