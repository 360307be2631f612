"""A run on several devices: its processes, sharded weights, and the optimizer."""

from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.wrapping import PreparedModel

__all__ = ["PreparedModel", "Ranks", "make_accelerator"]
