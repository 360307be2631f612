"""The outputs of a run: its folder, checkpoints, the exported student, the dashboard and experiment trackers."""

from vold_trainer.runs.export import run_export
from vold_trainer.runs.folder import RunFolder, StopSignal
from vold_trainer.runs.live import Dashboard
from vold_trainer.runs.saving import Saver

__all__ = ["Dashboard", "RunFolder", "Saver", "StopSignal", "run_export"]
