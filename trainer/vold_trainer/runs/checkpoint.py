"""Checkpoints as folders, written atomically.

`checkpoints/step-000010` holds safetensors files and state.json, which lists every file with its size. The folder is
written under another name, flushed to the disk and renamed, so that a killed process leaves the previous checkpoints as
they were. A checkpoint that is incomplete after a machine crash or an interrupted copy is ignored.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vold_trainer.errors import UsageError

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. state: everything but the tensors; its "score" ranks checkpoints, None if unknown."""

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def score(self) -> float | None:
        score = self.state.get("score")
        return None if score is None else float(score)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of the file `name`.safetensors. Raises UsageError if it cannot be read."""
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{file} cannot be read ({error}): go on from another one with --resume --step, or delete it"
            ) from error


def begin_checkpoint(out: Path, step: int) -> Path:
    """Create an empty folder for the checkpoint of `step`, which `finish_checkpoint` completes."""
    partial = out / "checkpoints" / f"partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_checkpoint(
    partial: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write tensors and state into the folder, and give the folder its final name. Returns the final path."""
    for name, part in tensors.items():
        save_file(dict(part), partial / f"{name}.safetensors")
    files = {str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)}
    (partial / "state.json").write_text(json.dumps({**state, "step": step, "files": files}) + "\n")
    for path in [*_files(partial), *(path for path in partial.rglob("*") if path.is_dir()), partial]:
        _flush(path)
    final = partial.with_name(f"step-{step:06d}")
    if final.exists():  # from an earlier attempt at this step, or incomplete
        final.rename(stale := partial.with_name(f"partial-stale-{step:06d}"))
        partial.rename(final)
        shutil.rmtree(stale)
    else:
        partial.rename(final)
    _flush(final.parent)
    return final


def list_checkpoints(out: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    checkpoints = [_read(path) for path in sorted((out / "checkpoints").glob("step-*"))]
    complete = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    return sorted(complete, key=lambda checkpoint: checkpoint.step)


def latest_checkpoint(out: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run."""
    checkpoints = list_checkpoints(out)
    return checkpoints[-1] if checkpoints else None


def choose_checkpoint(out: Path, which: str, mode: Mode) -> Checkpoint:
    """The checkpoint named by "last", "best" or a step. Raises UsageError with the available steps if there is none."""
    checkpoints = list_checkpoints(out)
    if not checkpoints:
        raise UsageError(f"{str(out)!r} has no complete checkpoint: set checkpoints.every before a run")
    if which == "last":
        return checkpoints[-1]
    if which == "best":
        best = best_checkpoints(checkpoints, 1, mode)
        if not best:
            raise UsageError(
                f"no checkpoint of {str(out)!r} has a score: set checkpoints.keep_best above 0, and checkpoints.metric "
                "to a figure of metrics.jsonl, before a run; or choose last or a step"
            )
        return best[0]
    for checkpoint in checkpoints:
        if str(checkpoint.step) == which:
            return checkpoint
    steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
    raise UsageError(f"{str(out)!r} has no checkpoint of step {which!r}: choose last, best, or one of {steps}")


def set_aside_after(out: Path, step: int) -> Path | None:
    """Move the checkpoints of later steps out of the way of a run that goes on from `step`, into `checkpoints/left`.
    Returns that folder, or None if there are none.

    They are kept, as the run went another way from here; a second time replaces those of the same step.
    """
    left = out / "checkpoints" / "left"
    later = [checkpoint for checkpoint in list_checkpoints(out) if checkpoint.step > step]
    for checkpoint in reversed(later):  # killed in between, the run still has no gap
        left.mkdir(exist_ok=True)
        shutil.rmtree(left / checkpoint.path.name, ignore_errors=True)
        checkpoint.path.rename(left / checkpoint.path.name)
    return left if later else None


def best_checkpoints(checkpoints: Sequence[Checkpoint], count: int, mode: Mode) -> list[Checkpoint]:
    """The `count` checkpoints with the best scores, best first; the later step first if scores are equal.

    Checkpoints without a score are left out.
    """
    sign = 1 if mode == "max" else -1
    scored = [(sign * c.score, c.step, c) for c in checkpoints if c.score is not None and math.isfinite(c.score)]
    return [checkpoint for _, _, checkpoint in sorted(scored, key=lambda entry: entry[:2], reverse=True)[:count]]


def prune_checkpoints(out: Path, *, keep_last: int, keep_best: int, mode: Mode) -> None:
    """Delete all checkpoints but the newest `keep_last` and the best `keep_best`, and all incomplete ones."""
    checkpoints = list_checkpoints(out)
    kept = {c.path for c in [*checkpoints[-keep_last:], *best_checkpoints(checkpoints, keep_best, mode)]}
    for path in (out / "checkpoints").glob("*-*"):
        if path not in kept and path.is_dir() and re.fullmatch(r"(step|partial|partial-stale)-\d+", path.name):
            shutil.rmtree(path)


def _read(path: Path) -> Checkpoint | None:
    try:
        state = json.loads((path / "state.json").read_text())
        complete = all((path / name).stat().st_size == size for name, size in state["files"].items())
        return Checkpoint(path, int(state["step"]), state) if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
