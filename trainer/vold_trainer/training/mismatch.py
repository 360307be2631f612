"""Watches `mismatch/abs`: how far the log-probabilities of the engine that sampled are from the trainer's.

Rounding makes it small and steady. A jump means that the engine samples with other weights, at another temperature, or
from another prompt; importance weights do not mend that.
"""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from vold_trainer.errors import RunError
from vold_trainer.terminal import console

PATIENCE = 3
"""Consecutive steps above the limit after which the run stops."""
WINDOW, FEWEST = 20, 5
"""Steps whose median a step is compared with, and how many of them there have to be."""
JUMP, FLOOR = 5.0, 0.02
"""A step has jumped if its value is above this multiple of the median, and above this many nats."""


class MismatchWatch:
    """limit: rollout.max_mismatch, nats; None: no step stops the run."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.in_a_row = 0
        self._last = 0.0

    def observe(self, step: int, value: float | None) -> None:
        """Record step `step`, counted from 1, and warn of a jump. value: of `mismatch/abs`; None without one."""
        if value is None:
            return
        self._last = value
        above = self.limit is not None and value > self.limit
        self.in_a_row = self.in_a_row + 1 if above else 0
        usual = median(self.recent) if len(self.recent) >= FEWEST else None
        if above:
            text = f"rollout.max_mismatch is {self.limit:g}"
        elif usual is not None and value > max(FLOOR, JUMP * usual):
            text = f"the median of the steps before is {usual:.2g}"
        else:
            self.recent.append(value)
            return
        console.print(
            f"[yellow]step {step}: the engine's log-probabilities are {value:.2g} nats a token from the trainer's "
            f"(mismatch/abs), and {text}",
            highlight=False,
            soft_wrap=True,
        )

    def check(self) -> None:
        """Raise RunError if too many steps in a row were above the limit."""
        if self.in_a_row >= PATIENCE:
            raise RunError(
                f"mismatch/abs was above rollout.max_mismatch {self.limit:g} for {self.in_a_row} steps in a row, last "
                f"{self._last:.2g} nats a token: the engine samples from another distribution than the trainer's. Does "
                "it have the student's weights, template and temperature (docs/guides/rollouts.md)? With rollout.ahead "
                "lower optim.lr or the steps ahead; rollout.max_mismatch=null goes on regardless"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON values."""
        return {"recent": list(self.recent), "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint; an empty one begins anew."""
        self.recent = deque(state.get("recent", ()), maxlen=WINDOW)
        self.in_a_row = int(state.get("in_a_row", 0))
