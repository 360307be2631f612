"""MOPD (arXiv 2601.02780): distillation from the teacher of each prompt's domain, plus the group advantage.

    A_t = sg(log pi_T - log pi_theta) + alpha A

`teachers` in the config says which teacher scores a prompt; the objective sees log-probabilities only.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.base import Needs, Rollouts, per_token, rewarded_tokens
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import GroupAdvantageOptions, policy_needs
from vold_trainer.objectives.lazy import Tensor
from vold_trainer.objectives.policy import Signal


@dataclass(frozen=True, kw_only=True)
class Mopd(GapOptions, GroupAdvantageOptions, Signal):
    """alpha: the weight of the group advantage; with 0 no verifier is needed."""

    name: Literal["mopd"] = "mopd"
    alpha: Annotated[float, Ge(0)] = 1.0

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=self.alpha > 0, teacher=True)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        gap_CT, known_CT = self.gap(rollouts)
        if not self.alpha:
            return gap_CT.detach(), known_CT
        advantages_CT = gap_CT.detach() + self.alpha * per_token(rollouts.advantages_C, rollouts)
        return advantages_CT, known_CT | rewarded_tokens(rollouts)
