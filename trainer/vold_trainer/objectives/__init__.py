"""Objectives: tensors in, a loss and its figures out. No I/O, no globals, no config objects.

Shapes: C completions (the G completions of a prompt stand together), T completion positions, padded right.
"""

from vold_trainer.objectives.base import Objective, Outcome, Rollouts
from vold_trainer.objectives.grpo import Grpo
from vold_trainer.objectives.opd import Opd
from vold_trainer.objectives.vold import Vold

__all__ = ["Grpo", "Objective", "Opd", "Outcome", "Rollouts", "Vold"]
