"""KDRL (arXiv 2506.02208): one policy gradient whose advantage is the group's plus the teacher's.

    A_t = A + beta sg(log pi_T - log pi_theta),   beta falling by anneal a step from beta to beta_min

The teacher's part may be masked by reward: "response" leaves it out where the completion is right, "group" where any
completion of the group is (or may be: a missing reward leaves it out).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from vold_trainer.objectives.base import (
    Needs,
    Normalise,
    Outcome,
    Rollouts,
    per_token,
    rewarded_tokens,
    teacher_gap,
)
from vold_trainer.objectives.grpo import Rewarded, policy_needs
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Kdrl(Rewarded, Signal):
    """beta: the first step's. anneal: how much it falls each step, 0 for a constant one. mask: see above."""

    name: Literal["kdrl"] = "kdrl"
    beta: Annotated[float, Ge(0)] = 5e-3
    beta_min: Annotated[float, Ge(0)] = 1e-3
    anneal: Annotated[float, Ge(0)] = 5e-5
    mask: Literal["none", "response", "group"] = "none"
    normalise: Normalise = "token"

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True, teacher=True)

    def beta_at(self, step: int) -> float:
        """The weight of the teacher's part at step `step`, counted from 0."""
        return max(self.beta - self.anneal * step, min(self.beta, self.beta_min))

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = teacher_gap(rollouts)
        if self.mask == "response":
            known_CT = known_CT & (rollouts.rewarded_C & ~rollouts.correct_C).unsqueeze(-1)
        elif self.mask == "group":
            known_CT = known_CT & unsolved(rollouts).unsqueeze(-1)
        teacher_CT = torch.where(known_CT, gap_CT.detach(), 0.0)
        advantages_CT = per_token(rollouts.advantages_C, rollouts) + self.beta_at(rollouts.step) * teacher_CT
        return advantages_CT, rewarded_tokens(rollouts) | known_CT

    def __call__(self, rollouts: Rollouts) -> Outcome:
        outcome = super().__call__(rollouts)
        return Outcome(outcome.loss, {**outcome.metrics, "objective/beta": self.beta_at(rollouts.step)})


def unsolved(rollouts: Rollouts) -> Tensor:
    """bool [C]: groups in which every completion is known to be wrong. Raises ValueError where nobody looked."""
    if rollouts.unsolved_C is None:
        raise ValueError("unsolved_C is None: this objective needs to know which groups have no correct completion")
    return rollouts.unsolved_C
