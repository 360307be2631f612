"""`vold check`: check everything that a training run needs, before it starts."""

from vold_trainer.checking.findings import CheckReport, Finding
from vold_trainer.checking.run import run_check

__all__ = ["CheckReport", "Finding", "run_check"]
