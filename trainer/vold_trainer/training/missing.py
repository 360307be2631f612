"""Watches the scores that a run does without: they are masked and told, and too many of them stop the run."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from vold_trainer.config import MissingConfig
from vold_trainer.errors import RunError
from vold_trainer.scoring.scores import StepScores
from vold_trainer.terminal import console


class MissingWatch:
    """config: the share of a step's rollouts that may be without a score, and for how many steps more may be."""

    def __init__(self, config: MissingConfig) -> None:
        self.config = config
        self.in_a_row = 0
        self.total = 0

    def check(self, scores: StepScores, count: int) -> None:
        """Report missing scores. Raises RunError if too large a share of `count` is missing for too many steps."""
        if not scores.missing:
            self.in_a_row = 0
            return
        self.total += scores.missing.total()
        reasons = scores.describe_missing()
        console.print(f"[yellow]missing scores, masked: {escape(reasons)}", highlight=False, soft_wrap=True)
        services = max(scores.count_missing(key) for key in ("teacher", "reference", "verifier"))
        share = min(1.0, (services + scores.count_missing("row")) / max(1, count))
        self.in_a_row = self.in_a_row + 1 if share > self.config.max_share else 0
        if self.in_a_row >= self.config.patience:
            raise RunError(
                f"{share:.0%} of the scores were missing for {self.in_a_row} steps in a row "
                f"({reasons}); missing.max_share is {self.config.max_share:.0%}. Check the services"
                + "".join(f"; mend the rows at fault, such as {fault}" for fault in scores.faults[:1])
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON values."""
        return {"missing_in_a_row": self.in_a_row, "missing_total": self.total}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint; an empty one begins anew."""
        self.in_a_row = int(state.get("missing_in_a_row", 0))
        self.total = int(state.get("missing_total", 0))
