"""Benchmarks by name: how a row of each becomes an example, and the benchmark's own figures.

    adapt("mathvista", row, "testmini.parquet:17")

A row is a mapping of columns as `datasets` gives them; a picture in it is a PIL image, {"bytes", "path"}, or a path.
There are two wordings: boxed, which asks every question alike and wants the answer in \\boxed{}, and own, which is as
the benchmark asks it.
"""

from vold_trainer.adapters.base import Figures, Outcome
from vold_trainer.adapters.registry import REGISTRY, Adapter, adapt, adapter
from vold_trainer.adapters.rows import AdapterReader, adapter_reader

__all__ = ["REGISTRY", "Adapter", "AdapterReader", "Figures", "Outcome", "adapt", "adapter", "adapter_reader"]
