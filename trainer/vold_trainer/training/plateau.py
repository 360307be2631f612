"""Watches `teacher/k2` for the step from which distillation brings the student no nearer to the teacher, and puts that
step into an objective whose `switch` is "plateau".
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from vold_trainer.objectives import AnyObjective, OpdThenRl
from vold_trainer.terminal import console

DROP = 0.05
"""The part by which a window's mean has to fall below that of the window before it: otherwise it has levelled off."""


class PlateauSwitch:
    """objective: as it is now; any but one with a switch at a plateau stays as it was given."""

    def __init__(self, objective: AnyObjective) -> None:
        self.objective = objective
        self._recent: deque[float] = deque(maxlen=2 * objective.window if isinstance(objective, OpdThenRl) else 0)

    def observe(self, value: float | None, *, next_step: int) -> bool:
        """Record a step's `teacher/k2`; None without one. next_step: the first whose rollouts are not generated yet,
        counted from 0: from there on reinforcement learning follows if the values have levelled off. Returns whether
        they have now, and the objective is another.
        """
        if not isinstance(self.objective, OpdThenRl) or self.objective.switch != "plateau" or value is None:
            return False
        self._recent.append(value)
        window, values = self.objective.window, list(self._recent)
        if len(values) < 2 * window:
            return False
        before, last = fmean(values[:window]), fmean(values[window:])
        if last < (1 - DROP) * before:
            return False
        console.print(
            f"[dim]distillation has levelled off (teacher/k2 {last:.3g} over {window} steps, {before:.3g} over those "
            f"before): reinforcement learning from step {next_step + 1}",
            highlight=False,
            soft_wrap=True,
        )
        self.objective = replace(self.objective, switch=next_step)
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON values."""
        return {"recent": list(self._recent), "switch": getattr(self.objective, "switch", None)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint; an empty one begins anew."""
        self._recent.extend(state.get("recent", ()))
        if isinstance(self.objective, OpdThenRl) and self.objective.switch == "plateau":
            self.objective = replace(self.objective, switch=state.get("switch", "plateau"))
