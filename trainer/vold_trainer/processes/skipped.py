"""Optimiser steps that are skipped because the gradient is not finite.

One step with a NaN makes every weight and every moment NaN, for ever. A skipped step leaves both as they were, so that
a run survives a batch at fault, and a run that has diverged still holds the weights from before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vold_trainer.errors import RunError
from vold_trainer.terminal import console


@dataclass
class SkippedSteps:
    """Counts the skipped optimiser steps of a run. The counts are the same on every process, as the norms are.

    limit: how many in a row stop the run, `optim.max_skipped`. in_a_row: the last ones that were skipped one after the
    other. total: of the run. recent: since the last call of `report`. norm: of the last one.
    """

    limit: int
    in_a_row: int = 0
    total: int = 0
    recent: int = 0
    norm: float = 0.0
    stopped: bool = False

    @property
    def diverging(self) -> bool:
        """Whether the last optimiser step was skipped: the weights may be on their way to nowhere."""
        return self.stopped or self.in_a_row > 0

    def record(self, norm: float, *, skipped: bool) -> None:
        """Count an optimiser step with this gradient norm."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.total += skipped
        self.recent += skipped
        if skipped:
            self.norm = norm

    def report(self, step: int) -> None:
        """Print what was skipped in the training step `step`, counted from 1.

        Raises RunError if `limit` optimiser steps in a row were skipped. The weights are those before the first of
        them, and a run that is resumed from here has `limit` attempts again.
        """
        recent, self.recent = self.recent, 0
        if not recent:
            return
        which = "the optimiser step is" if recent == 1 else f"{recent} optimiser steps are"
        console.print(
            f"[yellow]step {step}: the gradient's norm is {self.norm}: {which} skipped, {self.in_a_row} in a row "
            f"(optim.max_skipped: {self.limit} stop the run)",
            highlight=False,
            soft_wrap=True,
        )
        if self.in_a_row >= self.limit:
            count, self.in_a_row, self.stopped = self.in_a_row, 0, True
            raise RunError(
                f"the gradient's norm was not finite in {count} optimiser steps in a row (the last: {self.norm}), and "
                f"optim.max_skipped is {self.limit}: the run has diverged. Lower optim.lr, or go back to an earlier "
                "checkpoint with --resume --step"
            )

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"in_a_row": self.in_a_row, "total": self.total}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue from what `state` returned."""
        self.in_a_row, self.total = state.get("in_a_row", 0), state.get("total", 0)


def mean_norm(norms: list[float]) -> float:
    """The mean of the finite norms; NaN if there is none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return sum(finite) / len(finite) if finite else math.nan
