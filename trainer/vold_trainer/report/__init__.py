"""The report: one self-contained page about one run or several compared."""

from vold_trainer.report.ablation_plot import write_ablation
from vold_trainer.report.page import build_report

__all__ = ["build_report", "write_ablation"]
