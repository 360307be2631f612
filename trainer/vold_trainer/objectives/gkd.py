"""GKD (arXiv 2306.13649): the generalised JSD between teacher and student, on the student's completions or on traces.

    L = (1 - student_share) E_traces D + student_share E_student D

As in algorithm 1 of the paper, each step samples one of the two sources; the training loop does that.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vold_trainer.objectives.base import LossOutput, Needs, Objective, Rollouts
from vold_trainer.objectives.divergences import generalised_jsd
from vold_trainer.objectives.gap import GapOptions
from vold_trainer.objectives.term import support_metrics, support_of


@dataclass(frozen=True, kw_only=True)
class Gkd(GapOptions, Objective):
    """student_share: lambda, the probability that a step uses the student's own completions. traces: JSONL file of the
    other completions, as `vold traces` writes it. beta: 0 is the forward KL, 1 the reverse KL. top_k: how many of the
    teacher's most likely ids the divergence is computed over; the paper uses the whole vocabulary.
    """

    name: Literal["gkd"] = "gkd"
    student_share: Annotated[float, Ge(0), Le(1)] = 0.5
    beta: Annotated[float, Ge(0), Le(1)] = 0.5
    top_k: Annotated[int, Ge(2)] = 16
    traces: str | None = None

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, top_k=self.top_k, traces=self.student_share < 1)

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        support, known_CT = support_of(rollouts)
        bounded, bound_metrics = self.bound(support, known_CT)
        divergence_CT = generalised_jsd(bounded.student_CTK, bounded.teacher_CTK, bounded.mask_CTK, self.beta)
        loss = self.mean(divergence_CT, known_CT, rollouts)
        return LossOutput(loss, {"loss/teacher": loss.item(), **support_metrics(support, known_CT), **bound_metrics})
