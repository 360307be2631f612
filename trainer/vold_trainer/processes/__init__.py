"""A run on several devices: its processes, the weights that are spread over them, and the optimizer that they share."""

from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.wrapping import Wrapped

__all__ = ["Ranks", "Wrapped", "make_accelerator"]
