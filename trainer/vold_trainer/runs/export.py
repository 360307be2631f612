"""`vold export`: a checkpoint of a run as an ordinary transformers folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from vold_trainer.config import CheckpointsConfig, StudentConfig
from vold_trainer.errors import UsageError
from vold_trainer.processes.sharding import trainable_parameters
from vold_trainer.runs.checkpoint import choose
from vold_trainer.student.models import load_student


def run_export(run: Path, which: str, out: Path) -> int:
    """Write the student of a checkpoint to `out`, where `from_pretrained` loads it; returns the checkpoint's step.

    which: "last", "best", or a step. Raises UsageError where `run` is no run or has no such checkpoint.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UsageError(f"{str(run)!r} is no run's folder: there is no config.yaml in it")
    settings = yaml.safe_load(file.read_text())
    try:
        student = StudentConfig.model_validate(settings["student"])
        keep = CheckpointsConfig.model_validate(settings["checkpoints"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UsageError(f"{str(file)!r} is not the config of `vold sft` or `vold train`: {error}") from error
    found = choose(run, which, keep.mode)
    write_model(student, found.tensors("learning"), out)
    return found.step


@torch.no_grad()
def write_model(config: StudentConfig, weights: Mapping[str, Tensor], out: Path) -> None:
    """The student that `config` names, with these weights in place of its own. Raises UsageError where they are not
    its weights.
    """
    student = load_student(config)
    learning = trainable_parameters(student.model)
    if set(weights) != set(learning):
        odd = sorted(set(weights) ^ set(learning))[0]
        raise UsageError(f"student.path {config.path!r} is another model than the one trained: {odd!r}")
    for name, value in learning.items():
        value.copy_(weights[name])
    student.save(out)
