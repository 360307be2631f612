"""On-policy distillation alone: the advantage of a token is log pi_T - log pi_theta (Thinking Machines, 2025).

With tokens sampled from the student this is the policy gradient of the sequence's reverse KL. With discount 0 each
token is credited with its own advantage only, else with the advantages of later tokens too.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vold_trainer.objectives.base import LossOutput, Needs, Rollouts
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import policy_needs
from vold_trainer.objectives.lazy import Tensor, torch
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Opd(GapOptions, Signal):
    """L = mean over tokens of -min(ratio A_t, clip(ratio) A_t), A_t = coefficient * sg(log pi_T - log pi_theta).

    discount: the factor per token with which the advantages of later tokens are added to a token's own.
    """

    name: Literal["opd"] = "opd"
    coefficient: Annotated[float, Ge(0)] = 1.0
    discount: Annotated[float, Ge(0), Le(1)] = 0.0

    @property
    def needs(self) -> Needs:
        return policy_needs(self, teacher=True)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = self.gap(rollouts)
        advantages_CT = self.coefficient * gap_CT.detach()
        return (discounted(advantages_CT, self.discount) if self.discount else advantages_CT), known_CT

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        output = super().__call__(rollouts)
        metrics = dict(output.metrics)
        return LossOutput(output.loss, {"loss/teacher": metrics.pop("loss/policy"), **metrics})


def discounted(values_CT: Tensor, discount: float) -> Tensor:
    """The discounted sum along the last axis: out_t = value_t + discount * out_{t+1}."""
    discounted_CT = torch.empty_like(values_CT)
    total_C = torch.zeros_like(values_CT[..., 0])
    for t in reversed(range(values_CT.shape[-1])):
        total_C = values_CT[..., t] + discount * total_C
        discounted_CT[..., t] = total_C
    return discounted_CT
