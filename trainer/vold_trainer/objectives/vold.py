"""VOLD: GRPO plus a teacher term on the student's own tokens (arXiv 2510.23497).

    L = L_GRPO + beta E[(1 - r) sum_t k2_t],   k2_t = 1/2 (log pi_theta(y_t) - log pi_T(y_t))^2

The factor (1 - r) is taken from the verdict, so that a wrong completion has the whole term, or from the reward itself.
k2 is differentiated through log pi_theta; with tokens sampled from the student its expected gradient is that of
KL(student || teacher). If masked, the teacher term acts on wrong completions only: a correct completion needs no
correction. At ratio 1 the gradient equals a policy gradient with A - beta (1 - r) sg(log pi_theta - log pi_T).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.annealing import AnnealedBeta
from vold_trainer.objectives.base import (
    DecidedBy,
    LossOutput,
    Needs,
    Rollouts,
    Verdicts,
    per_token,
    rewarded_tokens,
)
from vold_trainer.objectives.grpo import GroupAdvantageOptions, policy_needs
from vold_trainer.objectives.lazy import Tensor
from vold_trainer.objectives.policy import PolicyGradient
from vold_trainer.objectives.term import TeacherTerm


@dataclass(frozen=True, kw_only=True)
class Vold(AnnealedBeta, TeacherTerm, GroupAdvantageOptions, PolicyGradient):
    """beta: the weight of the teacher term; 0.1 in the paper's text, 1e-3 in its supplement. anneal, beta_min: how it
    falls; from the step at which it is 0 the teacher is no longer queried. masked: use the factor (1 - r). mask: r is 1
    for a correct completion and else 0 (verdict), or the reward, within [0, 1] (reward).

    A completion without a reward has no policy gradient. It has the teacher term only if `masked` is off, because it is
    not known to be wrong.
    """

    name: Literal["vold"] = "vold"
    beta: Annotated[float, Ge(0)] = 0.1
    masked: bool = True
    mask: Literal["verdict", "reward"] = "verdict"
    eps_high: Annotated[float, Ge(0)] = 0.3

    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True) | self.teacher_needs()

    def needs_at(self, step: int) -> Needs:
        return policy_needs(self, reward=True) if self.ended_at(step) else self.needs

    def ended_at(self, step: int) -> bool:
        """Whether the teacher's term has fallen to nothing."""
        return self.anneal > 0 and self.beta_at(step) == 0

    @property
    def teacher_mask_by(self) -> DecidedBy:
        return "verdict" if self.masked else "nothing"

    def teacher_mask(self, verdicts: Verdicts) -> Tensor:
        """A completion whose factor (1 - r) is 0 is left out, and one without a reward."""
        if not self.masked:
            return super().teacher_mask(verdicts)
        if self.mask == "verdict":
            return verdicts.rewarded_C & ~verdicts.correct_C
        return verdicts.rewarded_C & (known_rewards(verdicts) < 1)

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        policy, metrics = self.policy_loss(
            rollouts, per_token(rollouts.advantages_C, rollouts), rewarded_tokens(rollouts)
        )
        beta = self.beta_at(rollouts.step)
        if self.anneal:
            metrics["objective/beta"] = beta
        if self.ended_at(rollouts.step):
            return LossOutput(policy, {"loss/policy": policy.item(), "loss/total": policy.item(), **metrics})
        divergence_CT, known_CT, divergence_metrics = self.teacher_divergence(rollouts)
        known_CT = known_CT & self.teacher_mask(rollouts.verdicts).unsqueeze(-1)
        if self.masked and self.mask == "reward":
            divergence_CT = divergence_CT * (1 - known_rewards(rollouts.verdicts)).unsqueeze(-1)
        if self.divergence in ("k2", "k3"):
            divergence_CT = self.apply_ratio(divergence_CT, known_CT, rollouts)
            divergence_CT, known_CT = self.apply_rollout_weights(rollouts, divergence_CT, known_CT, metrics)
        teacher = self.mean(divergence_CT, known_CT, rollouts)
        loss = policy + beta * teacher
        return LossOutput(
            loss,
            {
                "loss/policy": policy.item(),
                "loss/teacher": teacher.item(),
                "loss/total": loss.item(),
                **metrics,
                **divergence_metrics,
            },
        )


def known_rewards(verdicts: Verdicts) -> Tensor:
    """float [C]: rewards within [0, 1], 0 where missing. Raises ValueError if the verdicts have no rewards."""
    if verdicts.rewards_C is None:
        raise ValueError("rewards_C is None: mask 'reward' needs the verifier's rewards")
    return verdicts.rewards_C.nan_to_num(0.0).clamp(0.0, 1.0)
