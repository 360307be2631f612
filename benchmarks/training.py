"""Runs of `vold train` in the pocket world, shared by the benchmarks of training steps."""

from pathlib import Path
from typing import Any

from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.training.train import run_train


def train(objective: str, out: Path, steps: int, settings: list[str]) -> list[dict[str, Any]]:
    """The metrics of every step of a run in this process. The learning rate is too small to change the student, so that
    all steps are alike. settings: overrides of the pocket world's config of that objective.
    """
    run_train(
        load(TrainConfig, Path(f"pocket:{objective}"), [f"out={out}", f"steps={steps}", "optim.lr=1e-8", *settings])
    )
    return read_json_lines(out / "metrics.jsonl")
