"""Checkpoints to resume from: complete, and there whole or not at all.

A folder `checkpoints/step-N` holds the trained weights (safetensors), optimizer and schedule (tensors and plain
values, read with torch's weights-only loader) and the step. Everything random in a run is a function of its seed
and the step, so nothing else is needed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from vold_trainer.errors import UsageError


def save(
    out: Path,
    step: int,
    model: PreTrainedModel,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    keep: int = 2,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write `out/checkpoints/step-{step}` and drop all but the last `keep`. also: writes into the folder too."""
    root = out / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    partial, final = root / f"partial-{step}", root / f"step-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    learning = {
        name: value.detach().contiguous().cpu() for name, value in model.named_parameters() if value.requires_grad
    }
    save_file(learning, partial / "learning.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, partial / "optimizer.pt")
    if also is not None:
        also(partial)
    (partial / "state.json").write_text(json.dumps({"step": step}))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def latest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = sorted((out / "checkpoints").glob("step-*/state.json"))
    return found[-1].parent if found else None


def restore(folder: Path, model: PreTrainedModel, optimizer: Optimizer, scheduler: LRScheduler) -> int:
    """Put a checkpoint back; returns how many steps it had done. Raises UsageError where it is another model's."""
    saved = load_file(folder / "learning.safetensors")
    learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if set(saved) != set(learning):
        odd = sorted(set(saved) ^ set(learning))[0]
        raise UsageError(f"{folder} is of another model or another student.freeze: {odd!r} is only on one side")
    with torch.no_grad():
        for name, value in learning.items():
            value.copy_(saved[name])
    state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return int(json.loads((folder / "state.json").read_text())["step"])
