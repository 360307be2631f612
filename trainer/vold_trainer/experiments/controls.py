"""Changed copies of the pocket checkpoints: a teacher that says nothing, a teacher that is often wrong, and a student
that is all but the same; and an objective whose scores are shuffled.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vold_trainer.config import TrainConfig
from vold_trainer.errors import UsageError
from vold_trainer.objectives import LossOutput, Rollouts, Vold
from vold_trainer.pocket.shipped import checkpoint_path

NOISE = 0.55
"""Standard deviation of the weak teacher's noise, relative to that of the matrix."""


@dataclass(frozen=True, kw_only=True)
class ShuffledVold(Vold):
    """VOLD in which each scored token has the teacher's score of another token of its completion, by chance."""

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        if rollouts.teacher_logprobs_CT is None or rollouts.teacher_mask_CT is None:
            return super().__call__(rollouts)
        scores_CT = rollouts.teacher_logprobs_CT.clone()
        generator = torch.Generator().manual_seed(rollouts.step)
        for row, known_T in enumerate(rollouts.mask_CT & rollouts.teacher_mask_CT):
            places = known_T.nonzero().flatten()
            scores_CT[row, places] = scores_CT[row, places[torch.randperm(len(places), generator=generator)]]
        return super().__call__(replace(rollouts, teacher_logprobs_CT=scores_CT))


def shuffled(config: TrainConfig) -> TrainConfig:
    """The config with its objective, which must be `vold`, as ShuffledVold. Raises UsageError for another objective."""
    objective = config.objective
    if not isinstance(objective, Vold):
        raise UsageError(f"objective.name={objective.name!r} has no control with shuffled scores; take vold")
    options = {name: getattr(objective, name) for name in type(objective).__dataclass_fields__}
    return config.model_copy(update={"objective": ShuffledVold(**options)})


def uniform_teacher(folder: Path) -> Path:
    """The pocket teacher with a final norm of zeros, so that every id is equally likely; saved in `folder`."""

    def silence(name: str, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(weight) if name == "model.norm.weight" else weight

    return _copy("teacher", folder, silence)


def weak_teacher(folder: Path) -> Path:
    """The pocket teacher with noise on its matrices, which leaves it two thirds of its answers; saved in `folder`."""
    generator = torch.Generator().manual_seed(0)

    def disturb(name: str, weight: torch.Tensor) -> torch.Tensor:
        if weight.ndim < 2 or "embed" in name:
            return weight
        exact = weight.float()
        return (exact + NOISE * exact.std() * torch.randn(exact.shape, generator=generator)).to(weight.dtype)

    return _copy("teacher", folder, disturb)


def perturbed_student(folder: Path, scale: float) -> Path:
    """The base student in float32 with all weights x (1 + scale), saved in `folder`."""
    return _copy("student", folder, lambda name, weight: weight.float() * (1 + scale))


def _copy(checkpoint: str, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A shipped checkpoint with changed weights in `folder`, unless that is there."""
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint_path(checkpoint), partial)
        weights = load_file(partial / "model.safetensors")
        changed = {name: change(name, weight) for name, weight in weights.items()}
        save_file(changed, partial / "model.safetensors", metadata={"format": "pt"})
        partial.rename(folder)
    return folder
