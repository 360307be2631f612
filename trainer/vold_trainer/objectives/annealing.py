"""A weight of the teacher's part that falls from step to step."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True, kw_only=True)
class AnnealedBeta:
    """beta: the weight of the teacher's part at the first step. anneal: its decrease per step, 0 for a constant weight.
    beta_min: where it stays.
    """

    beta: Annotated[float, Ge(0)]
    anneal: Annotated[float, Ge(0)] = 0.0
    beta_min: Annotated[float, Ge(0)] = 0.0

    def beta_at(self, step: int) -> float:
        """The weight at step `step`, counted from 0."""
        return max(self.beta - self.anneal * step, min(self.beta, self.beta_min))
