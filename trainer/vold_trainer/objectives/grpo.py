"""GRPO: a clipped policy gradient on group advantages (arXiv 2402.03300). No reference KL."""

from dataclasses import dataclass
from typing import ClassVar

from vold_trainer.objectives.base import Normalise, Outcome, Rollouts, clipped_policy_gradient, masked_mean


@dataclass(frozen=True)
class Grpo:
    """L = mean over tokens of -min(ratio A, clip(ratio) A). Completions without a reward are left out."""

    eps_low: float = 0.2
    eps_high: float = 0.2
    normalise: Normalise = "sequence"

    needs_teacher: ClassVar[bool] = False
    needs_reward: ClassVar[bool] = True

    def __call__(self, rollouts: Rollouts) -> Outcome:
        advantages_CT = rollouts.advantages_C.unsqueeze(-1).expand_as(rollouts.logprobs_CT)
        mask_CT = rollouts.mask_CT & rollouts.rewarded_C.unsqueeze(-1)
        loss_CT, metrics = clipped_policy_gradient(
            rollouts, advantages_CT, mask_CT, eps_low=self.eps_low, eps_high=self.eps_high
        )
        loss = masked_mean(loss_CT, mask_CT, self.normalise, rollouts.mask_CT)
        return Outcome(loss, {"loss/policy": loss.item(), **metrics})
