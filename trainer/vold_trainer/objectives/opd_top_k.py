"""On-policy distillation over more ids than the sampled token.

opd-top-k: a divergence over K ids at each position of the student's own completions, as a loss. With the student's
most likely ids and the reverse KL it is "Rethinking OPD" (arXiv 2604.13016), with the teacher's arXiv 2603.25562.
opd-entropy (arXiv 2603.07079): the sampled-token policy gradient of `opd`, plus the forward KL over the teacher's K
most likely ids where the teacher's entropy is high, which keeps the student's distribution as wide as the teacher's.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.base import LossOutput, Needs, Objective, Rollouts
from vold_trainer.objectives.divergences import forward_kl
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.grpo import policy_needs
from vold_trainer.objectives.policy import PolicyGradient
from vold_trainer.objectives.term import Divergence, TeacherTerm, support_metrics, support_of


@dataclass(frozen=True, kw_only=True)
class OpdTopK(TeacherTerm, Objective):
    """L = coefficient * mean over tokens of the divergence."""

    name: Literal["opd-top-k"] = "opd-top-k"
    divergence: Divergence = "reverse-kl"
    coefficient: Annotated[float, Ge(0)] = 1.0

    @property
    def needs(self) -> Needs:
        return self.teacher_needs()

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        divergence_CT, known_CT, metrics = self.teacher_divergence(rollouts)
        if self.divergence in ("k2", "k3"):
            divergence_CT = self.apply_ratio(divergence_CT, known_CT, rollouts)
        loss = self.coefficient * self.mean(divergence_CT, known_CT, rollouts)
        return LossOutput(loss, {"loss/teacher": loss.item(), **metrics})


@dataclass(frozen=True, kw_only=True)
class OpdEntropy(GapOptions, PolicyGradient):
    """L = L_OPD + weight * mean over tokens of 1[H(pi_T) > threshold] KL(pi_T || pi_theta) over the teacher's top_k.

    threshold: nats.
    """

    name: Literal["opd-entropy"] = "opd-entropy"
    weight: Annotated[float, Ge(0)] = 1.0
    threshold: Annotated[float, Ge(0)] = 0.8
    top_k: Annotated[int, Ge(2)] = 16

    @property
    def needs(self) -> Needs:
        return policy_needs(self, teacher=True) | Needs(top_k=self.top_k, entropy=True)

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        if rollouts.teacher_entropy_CT is None:
            raise ValueError("teacher_entropy_CT is None: this objective needs the teacher's entropy")
        gap_CT, known_CT = self.gap(rollouts)
        reverse, metrics = self.policy_loss(rollouts, gap_CT.detach(), known_CT)
        support, supported_CT = support_of(rollouts)
        # a missing entropy is NaN, which is not above the threshold
        high_entropy_CT = supported_CT & (rollouts.teacher_entropy_CT > self.threshold)
        bounded, bound_metrics = self.bound(support, high_entropy_CT)
        forward_CT = forward_kl(bounded.student_CTK, bounded.teacher_CTK, bounded.mask_CTK)
        forward = self.mean(forward_CT, high_entropy_CT, rollouts)
        loss = reverse + self.weight * forward
        share = high_entropy_CT.sum() / rollouts.mask_CT.sum().clamp(min=1)
        return LossOutput(
            loss,
            {
                "loss/teacher": reverse.item(),
                "loss/forward_kl": forward.item(),
                "loss/total": loss.item(),
                "teacher/unsure": share.item(),
                **metrics,
                **support_metrics(support, supported_CT),
                **bound_metrics,
            },
        )
