"""`vold prepare`: published data sets as files of vold's own form, which the shipped configs name."""

from vold_trainer.preparation.layouts import GEOMETRY3K, MIXTURE_OF_THOUGHTS, ORZ57K, Layout
from vold_trainer.preparation.run import Prepared, run_prepare

__all__ = ["GEOMETRY3K", "MIXTURE_OF_THOUGHTS", "ORZ57K", "Layout", "Prepared", "run_prepare"]
