"""SRPO (arXiv 2604.02288): the group advantage for correct completions, the teacher's advantage for wrong ones.

    A_t = c A + (1 - c) sg(log pi_T - log pi_theta)

A completion without a verdict has no loss, because c is unknown.
"""

from dataclasses import dataclass
from typing import Literal

from vold_trainer.objectives.base import DecidedBy, Needs, Rollouts, Verdicts, per_token, rewarded_tokens
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import GroupAdvantageOptions, policy_needs
from vold_trainer.objectives.lazy import Tensor, torch
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Srpo(GapOptions, GroupAdvantageOptions, Signal):
    name: Literal["srpo"] = "srpo"

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True, teacher=True)

    @property
    def teacher_mask_by(self) -> DecidedBy:
        return "verdict"

    def teacher_mask(self, verdicts: Verdicts) -> Tensor:
        return verdicts.rewarded_C & ~verdicts.correct_C

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = self.gap(rollouts)
        rewarded_CT = rewarded_tokens(rollouts)
        correct_CT = rewarded_CT & rollouts.correct_C.unsqueeze(-1)
        wrong_CT = known_CT & self.teacher_mask(rollouts.verdicts).unsqueeze(-1)
        return torch.where(
            correct_CT, per_token(rollouts.advantages_C, rollouts), gap_CT.detach()
        ), correct_CT | wrong_CT
