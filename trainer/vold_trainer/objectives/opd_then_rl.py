"""Distillation first, reinforcement learning after ("Sequential Beats Joint", 2026).

A_t = sg(log pi_T - log pi_theta) before step `switch`, A from step `switch` on, when the teacher is no longer queried.
With `switch: plateau` the run puts the number of a step in its place (training/plateau.py).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.base import LossOutput, Needs, Rollouts, per_token, rewarded_tokens
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import GroupAdvantageOptions, policy_needs
from vold_trainer.objectives.lazy import Tensor
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class OpdThenRl(GapOptions, GroupAdvantageOptions, Signal):
    """switch: the number of distillation steps before reinforcement learning; plateau: until the student comes no
    nearer to the teacher. window: steps in which it would have to, for a plateau.
    """

    name: Literal["opd-then-rl"] = "opd-then-rl"
    switch: Annotated[int, Ge(0)] | Literal["plateau"] = 60
    window: Annotated[int, Ge(1)] = 10

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True, teacher=self.switch != 0)

    def needs_at(self, step: int) -> Needs:
        distils = self.distils_at(step)
        return policy_needs(self, reward=not distils, teacher=distils)

    def distils_at(self, step: int) -> bool:
        return self.switch == "plateau" or step < self.switch

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        if self.distils_at(rollouts.step):
            gap_CT, known_CT = self.gap(rollouts)
            return gap_CT.detach(), known_CT
        return per_token(rollouts.advantages_C, rollouts), rewarded_tokens(rollouts)

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        output = super().__call__(rollouts)
        return LossOutput(output.loss, {**output.metrics, "objective/distils": float(self.distils_at(rollouts.step))})
