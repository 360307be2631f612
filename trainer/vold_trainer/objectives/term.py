"""The teacher's term as a loss of its own: which divergence, over which ids."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from vold_trainer.objectives.base import Needs, Rollouts, Support, teacher_gap
from vold_trainer.objectives.divergences import forward_kl, generalised_jsd, reverse_kl, sampled

Divergence = Literal["k2", "k3", "reverse-kl", "forward-kl", "jsd"]
Whose = Literal["student", "teacher"]


@dataclass(frozen=True, kw_only=True)
class TeacherTerm:
    """divergence: k2 and k3 look at the sampled token alone; the others at top_k ids, renormalised over these.
    support: whose most likely ids: the student's ("Rethinking OPD", arXiv 2604.13016; the teacher has to score
    candidates) or the teacher's (arXiv 2603.25562). mask_special: leave the tokenizer's special ids out of it.
    jsd_beta: 0 is the forward KL, 1 the reverse one.
    """

    divergence: Divergence = "k2"
    support: Whose = "student"
    top_k: Annotated[int, Ge(2)] = 16
    mask_special: bool = False
    jsd_beta: Annotated[float, Ge(0), Le(1)] = 0.5

    def term_needs(self) -> Needs:
        if self.divergence in ("k2", "k3"):
            return Needs(teacher=True)
        if self.support == "teacher":
            return Needs(teacher=True, top_k=self.top_k, mask_special=self.mask_special)
        return Needs(teacher=True, candidates=self.top_k, mask_special=self.mask_special)

    def term(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, dict[str, float]]:
        """(the divergence [C, T] with gradient, bool [C, T] where it is known, figures)."""
        if self.divergence in ("k2", "k3"):
            gap_CT, known_CT = teacher_gap(rollouts)
            return sampled(self.divergence, gap_CT), known_CT, {}
        support, known_CT = support_of(rollouts)
        sides = (support.student_CTK, support.teacher_CTK, support.mask_CTK)
        if self.divergence == "reverse-kl":
            loss_CT = reverse_kl(*sides)
        elif self.divergence == "forward-kl":
            loss_CT = forward_kl(*sides)
        else:
            loss_CT = generalised_jsd(*sides, beta=self.jsd_beta)
        return loss_CT, known_CT, support_figures(support, known_CT)


def support_of(rollouts: Rollouts) -> tuple[Support, Tensor]:
    """(the support, bool [C, T] where two or more of its ids count: over one alone every divergence is 0).

    Raises ValueError where it was not asked for.
    """
    if rollouts.support is None:
        raise ValueError("support is None: this divergence needs both sides' log-probabilities of some ids")
    return rollouts.support, rollouts.mask_CT & (rollouts.support.mask_CTK.sum(-1) > 1)


@torch.no_grad()
def support_figures(support: Support, known_CT: Tensor) -> dict[str, float]:
    """How many ids count at a position, and how much probability each side has on them: means over the known ones."""
    count = known_CT.sum().clamp(min=1)
    figures = {"support/ids": (torch.where(known_CT, support.mask_CTK.sum(-1), 0).sum() / count).item()}
    for who, logprobs_CTK in (("student", support.student_CTK), ("teacher", support.teacher_CTK)):
        mass_CT = torch.where(support.mask_CTK, logprobs_CTK, -torch.inf).exp().sum(-1)
        figures[f"support/{who}_mass"] = (torch.where(known_CT, mass_CT, 0.0).sum() / count).item()
    return figures
