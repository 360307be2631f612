"""The report: one self-contained HTML page about one run, or a comparison of several."""

from vold_trainer.report.ablation_plot import write_ablation
from vold_trainer.report.page import build_report

__all__ = ["build_report", "write_ablation"]
