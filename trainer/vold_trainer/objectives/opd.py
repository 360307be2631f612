"""On-policy distillation alone: the advantage of a token is log pi_T - log pi_theta (Thinking Machines, 2025).

With tokens drawn from the student this policy gradient is that of the sequence's reverse KL, each token answering
for itself only (discount 0) or for what follows from it as well.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from vold_trainer.objectives.base import Needs, Outcome, Rollouts, teacher_gap
from vold_trainer.objectives.grpo import policy_needs
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Opd(Signal):
    """L = mean over tokens of -min(ratio A_t, clip(ratio) A_t), A_t = coefficient * sg(log pi_T - log pi_theta).

    discount: how much of the next token's advantage a token gets on top of its own.
    """

    name: Literal["opd"] = "opd"
    coefficient: Annotated[float, Ge(0)] = 1.0
    discount: Annotated[float, Ge(0), Le(1)] = 0.0

    @property
    def needs(self) -> Needs:
        return policy_needs(self, teacher=True)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = teacher_gap(rollouts)
        advantages_CT = self.coefficient * gap_CT.detach()
        return (discounted(advantages_CT, self.discount) if self.discount else advantages_CT), known_CT

    def __call__(self, rollouts: Rollouts) -> Outcome:
        outcome = super().__call__(rollouts)
        metrics = dict(outcome.metrics)
        return Outcome(outcome.loss, {"loss/teacher": metrics.pop("loss/policy"), **metrics})


def discounted(values_CT: Tensor, discount: float) -> Tensor:
    """Each value plus `discount` times the sum, discounted alike, of those after it along the last axis."""
    out_CT = torch.empty_like(values_CT)
    carried_C = torch.zeros_like(values_CT[..., 0])
    for t in reversed(range(values_CT.shape[-1])):
        carried_C = values_CT[..., t] + discount * carried_C
        out_CT[..., t] = carried_C
    return out_CT
