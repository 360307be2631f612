"""A divergence from the teacher as a loss term: which divergence, over which ids."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vold_trainer.objectives.base import Needs, Rollouts, Support
from vold_trainer.objectives.divergences import forward_kl, generalised_jsd, reverse_kl, sampled
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.lazy import Tensor, torch

Divergence = Literal["k2", "k3", "reverse-kl", "forward-kl", "jsd"]
SupportSource = Literal["student", "teacher"]


@dataclass(frozen=True, kw_only=True)
class TeacherTerm(GapOptions):
    """The options of a divergence from the teacher.

    divergence: k2 and k3 use the sampled token alone, the others top_k ids, renormalised over these. support: whose
    most likely ids to use: the student's ("Rethinking OPD", arXiv 2604.13016; the teacher must score candidates) or the
    teacher's (arXiv 2603.25562). mask_special: leave the tokenizer's special ids out of the support. jsd_beta: 0 is the
    forward KL, 1 the reverse KL.
    """

    divergence: Divergence = "k2"
    support: SupportSource = "student"
    top_k: Annotated[int, Ge(2)] = 16
    mask_special: bool = False
    jsd_beta: Annotated[float, Ge(0), Le(1)] = 0.5

    def teacher_needs(self) -> Needs:
        """The needs of the divergence."""
        if self.divergence in ("k2", "k3"):
            return Needs(teacher=True)
        if self.support == "teacher":
            return Needs(teacher=True, top_k=self.top_k, mask_special=self.mask_special)
        return Needs(teacher=True, candidates=self.top_k, mask_special=self.mask_special)

    def teacher_divergence(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, dict[str, float]]:
        """(the divergence [C, T] with gradient, bool [C, T]: where it is known, its metrics)."""
        if self.divergence in ("k2", "k3"):
            gap_CT, known_CT = self.gap(rollouts)
            return sampled(self.divergence, gap_CT), known_CT, {}
        support, known_CT = support_of(rollouts)
        bounded, bound_metrics = self.bound(support, known_CT)
        arguments = (bounded.student_CTK, bounded.teacher_CTK, bounded.mask_CTK)
        if self.divergence == "reverse-kl":
            divergence_CT = reverse_kl(*arguments)
        elif self.divergence == "forward-kl":
            divergence_CT = forward_kl(*arguments)
        else:
            divergence_CT = generalised_jsd(*arguments, beta=self.jsd_beta)
        return divergence_CT, known_CT, {**support_metrics(support, known_CT), **bound_metrics}


def support_of(rollouts: Rollouts) -> tuple[Support, Tensor]:
    """(the support, bool [C, T]: where its mask has at least two ids; over one id every divergence is 0).

    Raises ValueError if the rollouts have no support.
    """
    if rollouts.support is None:
        raise ValueError(
            "support is None: this divergence needs the student's and the teacher's log-probabilities of the same ids"
        )
    return rollouts.support, rollouts.mask_CT & (rollouts.support.mask_CTK.sum(-1) > 1)


def support_metrics(support: Support, known_CT: Tensor) -> dict[str, float]:
    """The number of ids in the support of a position and their probability under each model: means over known_CT."""
    with torch.no_grad():
        count = known_CT.sum().clamp(min=1)
        metrics = {"support/ids": (torch.where(known_CT, support.mask_CTK.sum(-1), 0).sum() / count).item()}
        for model, logprobs_CTK in (("student", support.student_CTK), ("teacher", support.teacher_CTK)):
            mass_CT = torch.where(support.mask_CTK, logprobs_CTK, -torch.inf).exp().sum(-1)
            metrics[f"support/{model}_mass"] = (torch.where(known_CT, mass_CT, 0.0).sum() / count).item()
        return metrics
