"""VOLD: GRPO plus a teacher term on the student's own tokens (arXiv 2510.23497).

    L = L_GRPO + beta E[(1 - r) sum_t k2_t],   k2_t = 1/2 (log pi_theta(y_t) - log pi_T(y_t))^2

k2 is differentiated through log pi_theta; with tokens drawn from the student its gradient is that of
KL(student || teacher). Masked, the term acts on wrong completions only, for what earns its reward needs no
correction. At ratio 1 the gradient equals a policy gradient with A - beta (1 - r) sg(log pi_theta - log pi_T).
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
class Vold:
    """beta: 0.1 in the paper's text, 1e-3 in its supplement. masked: the paper's (1 - r).

    A completion whose reward is missing gets no policy gradient; it gets the teacher term only unmasked, since
    nobody knows whether it is wrong.
    """

    beta: float = 0.1
    masked: bool = True
    eps_low: float = 0.2
    eps_high: float = 0.3
    normalise: Normalise = "sequence"

    needs_teacher: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = True

    def __call__(self, rollouts: Rollouts) -> Outcome:
        advantages_CT = rollouts.advantages_C.unsqueeze(-1).expand_as(rollouts.logprobs_CT)
        rewarded_CT = rollouts.mask_CT & rollouts.rewarded_C.unsqueeze(-1)
        policy_CT, metrics = clipped_policy_gradient(
            rollouts, advantages_CT, rewarded_CT, eps_low=self.eps_low, eps_high=self.eps_high
        )
        policy = masked_mean(policy_CT, rewarded_CT, self.normalise, rollouts.mask_CT)

        gap_CT, known_CT = teacher_gap(rollouts)
        if self.masked:
            known_CT = known_CT & (rollouts.rewarded_C & ~rollouts.correct_C).unsqueeze(-1)
        teacher = masked_mean(0.5 * gap_CT.square(), known_CT, self.normalise, rollouts.mask_CT)
        loss = policy + self.beta * teacher
        return Outcome(
            loss, {"loss/policy": policy.item(), "loss/teacher": teacher.item(), "loss/total": loss.item(), **metrics}
        )
