"""`vold check`: everything about a training run that can be known before it spends anything."""

from vold_trainer.checking.findings import Finding, Findings
from vold_trainer.checking.run import run_check

__all__ = ["Finding", "Findings", "run_check"]
