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
from vold_trainer.runs.checkpoint import choose_checkpoint
from vold_trainer.student.models import load_student


def run_export(run: Path, which: str, out: Path) -> int:
    """Write the student of a checkpoint to `out`, for `from_pretrained`. Returns the step of the checkpoint.

    which: "last", "best", or a step. Raises UsageError if `run` is not a run's folder or has no such checkpoint.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UsageError(f"{str(run)!r} is not a run's folder: there is no config.yaml in it")
    settings = yaml.safe_load(file.read_text())
    try:
        student = StudentConfig.model_validate(settings["student"])
        checkpoints = CheckpointsConfig.model_validate(settings["checkpoints"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UsageError(f"{str(file)!r} is not the config of `vold sft` or `vold train`: {error}") from error
    checkpoint = choose_checkpoint(run, which, checkpoints.mode)
    write_model(student, checkpoint.tensors("learning"), out)
    return checkpoint.step


@torch.no_grad()
def write_model(config: StudentConfig, weights: Mapping[str, Tensor], out: Path) -> None:
    """Write the student of `config` with its trainable weights replaced by `weights`.

    Raises UsageError if the names of `weights` are not those of its trainable parameters.
    """
    student = load_student(config)
    parameters = trainable_parameters(student.model)
    if set(weights) != set(parameters):
        different = sorted(set(weights) ^ set(parameters))[0]
        raise UsageError(f"student.path {config.path!r} is another model than the one trained: {different!r}")
    for name, value in parameters.items():
        value.copy_(weights[name])
    student.save(out)
