"""KDRL (arXiv 2506.02208): one policy gradient whose advantage is the group advantage plus the teacher's.

    A_t = A + beta sg(log pi_T - log pi_theta),   beta falls by anneal per step from beta to beta_min

The teacher's part may be masked by reward: "response" masks it for correct completions and completions without a
reward, "group" for every completion of a group in which a completion is correct or has no reward.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.annealing import AnnealedBeta
from vold_trainer.objectives.base import (
    DecidedBy,
    LossOutput,
    Needs,
    Normalise,
    Rollouts,
    Verdicts,
    per_token,
    rewarded_tokens,
)
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import GroupAdvantageOptions, policy_needs
from vold_trainer.objectives.lazy import Tensor, torch
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Kdrl(AnnealedBeta, GapOptions, GroupAdvantageOptions, Signal):
    """beta, anneal, beta_min: of the teacher's advantage. mask: see above."""

    name: Literal["kdrl"] = "kdrl"
    beta: Annotated[float, Ge(0)] = 5e-3
    beta_min: Annotated[float, Ge(0)] = 1e-3
    anneal: Annotated[float, Ge(0)] = 5e-5
    mask: Literal["none", "response", "group"] = "none"
    normalise: Normalise = "token"

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True, teacher=True)

    @property
    def teacher_mask_by(self) -> DecidedBy:
        decided: dict[str, DecidedBy] = {"none": "nothing", "response": "verdict", "group": "group"}
        return decided[self.mask]

    def teacher_mask(self, verdicts: Verdicts) -> Tensor:
        if self.mask == "response":
            return verdicts.rewarded_C & ~verdicts.correct_C
        return unsolved_mask(verdicts) if self.mask == "group" else super().teacher_mask(verdicts)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = self.gap(rollouts)
        known_CT = known_CT & self.teacher_mask(rollouts.verdicts).unsqueeze(-1)
        teacher_CT = torch.where(known_CT, gap_CT.detach(), 0.0)
        advantages_CT = per_token(rollouts.advantages_C, rollouts) + self.beta_at(rollouts.step) * teacher_CT
        return advantages_CT, rewarded_tokens(rollouts) | known_CT

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        output = super().__call__(rollouts)
        return LossOutput(output.loss, {**output.metrics, "objective/beta": self.beta_at(rollouts.step)})


def unsolved_mask(verdicts: Verdicts) -> Tensor:
    """bool [C]: completions of groups in which every completion is known to be wrong.

    Raises ValueError if `unsolved_C` is None.
    """
    if verdicts.unsolved_C is None:
        raise ValueError("unsolved_C is None: this objective needs to know which groups have no correct completion")
    return verdicts.unsolved_C
