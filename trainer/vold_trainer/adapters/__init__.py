"""Adapters of benchmarks, by name: they convert rows to examples and compute the benchmark's own metrics.

    adapt("mathvista", row, "testmini.parquet:17")

A row is a mapping of columns, as in `datasets`. An image in it is a PIL image, {"bytes", "path"}, or a path. There are
two wordings of prompts: "boxed" is the same for all benchmarks and asks for the answer in \\boxed{}; "own" is the
benchmark's prompt.
"""

from vold_trainer.adapters.base import Metrics, Outcome
from vold_trainer.adapters.registry import REGISTRY, Adapter, adapt, get_adapter
from vold_trainer.adapters.rows import AdapterReader, adapter_reader

__all__ = ["REGISTRY", "Adapter", "AdapterReader", "Metrics", "Outcome", "adapt", "adapter_reader", "get_adapter"]
