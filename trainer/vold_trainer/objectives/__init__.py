"""Objectives: tensors in, a loss and its metrics out. No I/O, no globals, no config objects.

Shapes: C completions (the G completions of a prompt are adjacent), T completion positions, padded right, K ids of a
support.
"""

from typing import get_args

from vold_trainer.objectives.base import LossOutput, Needs, Objective, Rollouts, Support
from vold_trainer.objectives.gkd import Gkd
from vold_trainer.objectives.grpo import Cispo, Dapo, DrGrpo, Grpo, Gspo
from vold_trainer.objectives.hdpo import Hdpo
from vold_trainer.objectives.kdrl import Kdrl
from vold_trainer.objectives.mopd import Mopd
from vold_trainer.objectives.opd import Opd
from vold_trainer.objectives.opd_then_rl import OpdThenRl
from vold_trainer.objectives.opd_top_k import OpdEntropy, OpdTopK
from vold_trainer.objectives.srpo import Srpo
from vold_trainer.objectives.vold import Vold

AnyObjective = (
    Grpo
    | DrGrpo
    | Dapo
    | Gspo
    | Cispo
    | Opd
    | OpdTopK
    | OpdEntropy
    | Vold
    | Kdrl
    | Srpo
    | Hdpo
    | Mopd
    | OpdThenRl
    | Gkd
)

REGISTRY: dict[str, type[AnyObjective]] = {objective.name: objective for objective in get_args(AnyObjective)}
"""Objective classes by the name that a config gives."""

__all__ = [
    "REGISTRY",
    "AnyObjective",
    "Cispo",
    "Dapo",
    "DrGrpo",
    "Gkd",
    "Grpo",
    "Gspo",
    "Hdpo",
    "Kdrl",
    "LossOutput",
    "Mopd",
    "Needs",
    "Objective",
    "Opd",
    "OpdEntropy",
    "OpdThenRl",
    "OpdTopK",
    "Rollouts",
    "Srpo",
    "Support",
    "Vold",
]
