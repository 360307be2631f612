"""On-policy distillation alone: the advantage of a token is log pi_T - log pi_theta (Thinking Machines, 2025).

With tokens drawn from the student this policy gradient is that of the sequence's reverse KL, each token answering
for itself only (discount 0).
"""

from dataclasses import dataclass
from typing import ClassVar

from vold_trainer.objectives.base import (
    Normalise,
    Outcome,
    Rollouts,
    clipped_policy_gradient,
    masked_mean,
    teacher_gap,
)


@dataclass(frozen=True)
class Opd:
    """L = mean over tokens of -min(ratio A_t, clip(ratio) A_t), A_t = coefficient * sg(log pi_T - log pi_theta)."""

    coefficient: float = 1.0
    eps_low: float = 0.2
    eps_high: float = 0.2
    normalise: Normalise = "sequence"

    needs_teacher: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = False

    def __call__(self, rollouts: Rollouts) -> Outcome:
        gap_CT, known_CT = teacher_gap(rollouts)
        loss_CT, metrics = clipped_policy_gradient(
            rollouts, self.coefficient * gap_CT.detach(), known_CT, eps_low=self.eps_low, eps_high=self.eps_high
        )
        loss = masked_mean(loss_CT, known_CT, self.normalise, rollouts.mask_CT)
        return Outcome(loss, {"loss/teacher": loss.item(), **metrics})
