"""The gap between teacher and student, log pi_T - log pi_theta, and a bound on it.

A token that the teacher finds all but impossible has a gap of ten nats and more, and a few such tokens can outweigh all
others of a step. With a bound, a teacher's log-probability that is farther from the student's counts as if it were just
that far: the token keeps its direction and a gradient, and no longer has a larger one than a token at the bound.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Gt

from vold_trainer.objectives.base import Rollouts, Support, move_within, teacher_gap
from vold_trainer.objectives.divergences import renormalise
from vold_trainer.objectives.lazy import Tensor


@dataclass(frozen=True, kw_only=True)
class GapOptions:
    """The options of an objective with a teacher's term.

    gap_cap: the bound on |log pi_T - log pi_theta| of a token, nats; null for none.
    """

    gap_cap: Annotated[float, Gt(0)] | None = None

    def gap(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """`teacher_gap` within the bound."""
        return teacher_gap(rollouts, self.gap_cap)

    def bound(self, support: Support, known_CT: Tensor) -> tuple[Support, dict[str, float]]:
        """(the support within the bound, its metrics). known_CT: bool, where the support is used."""
        if self.gap_cap is None:
            return support, {}
        bounded, capped_CTK = bound_support(support, self.gap_cap)
        ids_CTK = support.mask_CTK & known_CT.unsqueeze(-1)
        share = (capped_CTK & ids_CTK).sum() / ids_CTK.sum().clamp(min=1)
        return bounded, {"support/capped": share.item()}


def bound_support(support: Support, cap: float) -> tuple[Support, Tensor]:
    """(the support with the teacher's log-probabilities, renormalised over it, within `cap` of the student's; bool
    [C, T, K]: the ids that this moved). The sum of the moved probabilities is not 1.
    """
    teacher_CTK = renormalise(support.teacher_CTK, support.mask_CTK)
    bounded_CTK = move_within(teacher_CTK, renormalise(support.student_CTK, support.mask_CTK), cap)
    return replace(support, teacher_CTK=bounded_CTK), bounded_CTK != teacher_CTK
