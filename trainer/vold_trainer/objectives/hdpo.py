"""HDPO (arXiv 2603.23871): the teacher's advantage is added only in groups without a correct completion.

    A_t = A + beta sg(log pi_T - log pi_theta) in groups without a correct completion, A elsewhere

In the paper the teacher is the student with the answer in its prompt; here it is the configured teacher.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.base import DecidedBy, Needs, Rollouts, Verdicts, per_token, rewarded_tokens
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import GroupAdvantageOptions, policy_needs
from vold_trainer.objectives.kdrl import unsolved_mask
from vold_trainer.objectives.lazy import Tensor, torch
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Hdpo(GapOptions, GroupAdvantageOptions, Signal):
    """beta: the weight of the teacher's advantage in unsolved groups. A group with a missing reward does not count as
    unsolved.
    """

    name: Literal["hdpo"] = "hdpo"
    beta: Annotated[float, Ge(0)] = 0.1

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True, teacher=True)

    @property
    def teacher_mask_by(self) -> DecidedBy:
        return "group"

    def teacher_mask(self, verdicts: Verdicts) -> Tensor:
        return unsolved_mask(verdicts)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = self.gap(rollouts)
        teacher_CT = torch.where(known_CT & self.teacher_mask(rollouts.verdicts).unsqueeze(-1), gap_CT.detach(), 0.0)
        return per_token(rollouts.advantages_C, rollouts) + self.beta * teacher_CT, rewarded_tokens(rollouts)
