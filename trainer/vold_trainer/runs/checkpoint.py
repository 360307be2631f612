"""Checkpoints as folders: there whole or not at all, kept as long as the config says.

`checkpoints/step-000010` holds safetensors files and state.json, which names every file with its size. It is written
under another name, flushed to the disk and renamed, so that a process killed at any moment leaves what was there
before. What a crash of the machine or a copy cut short leaves is not whole, and is passed over.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from vold_trainer.errors import UsageError

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. state: what is not tensors; its "score" is how good the run was then, None if unknown."""

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def score(self) -> float | None:
        found = self.state.get("score")
        return None if found is None else float(found)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Those of one of its files."""
        return load_file(self.path / f"{name}.safetensors")


def begin(out: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` into; `finish` makes a checkpoint of it."""
    partial = out / "checkpoints" / f"partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish(partial: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write tensors and state beside what is in the folder already, and give it its name. Returns the checkpoint."""
    for name, part in tensors.items():
        save_file(dict(part), partial / f"{name}.safetensors")
    files = {str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)}
    (partial / "state.json").write_text(json.dumps({**state, "step": step, "files": files}) + "\n")
    for path in [*_files(partial), *(path for path in partial.rglob("*") if path.is_dir()), partial]:
        _to_disk(path)
    final = partial.with_name(f"step-{step:06d}")
    if final.exists():  # of an earlier attempt at this step, or not whole
        final.rename(stale := partial.with_name(f"partial-stale-{step:06d}"))
        partial.rename(final)
        shutil.rmtree(stale)
    else:
        partial.rename(final)
    _to_disk(final.parent)
    return final


def listed(out: Path) -> list[Checkpoint]:
    """The whole checkpoints of a run, oldest first."""
    found = [_read(path) for path in sorted((out / "checkpoints").glob("step-*"))]
    return sorted((checkpoint for checkpoint in found if checkpoint is not None), key=lambda one: one.step)


def latest(out: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run."""
    found = listed(out)
    return found[-1] if found else None


def choose(out: Path, which: str, mode: Mode) -> Checkpoint:
    """The checkpoint called "last", "best" or by its step. Raises UsageError that says which ones there are."""
    found = listed(out)
    if not found:
        raise UsageError(f"{str(out)!r} has no whole checkpoint: set checkpoints.every before a run")
    if which == "last":
        return found[-1]
    if which == "best":
        best = best_of(found, 1, mode)
        if not best:
            raise UsageError(
                f"no checkpoint of {str(out)!r} has a score: set checkpoints.metric to a figure of metrics.jsonl"
            )
        return best[0]
    for checkpoint in found:
        if str(checkpoint.step) == which:
            return checkpoint
    steps = ", ".join(str(checkpoint.step) for checkpoint in found)
    raise UsageError(f"{str(out)!r} has no checkpoint of step {which!r}: choose last, best, or one of {steps}")


def best_of(checkpoints: Sequence[Checkpoint], count: int, mode: Mode) -> list[Checkpoint]:
    """The `count` with the best scores, best first; of equals the later one. Those without a score are never chosen."""
    sign = 1 if mode == "max" else -1
    scored = [(sign * one.score, one.step, one) for one in checkpoints if one.score is not None]
    return [one for _, _, one in sorted(scored, key=lambda found: found[:2], reverse=True)[:count]]


def prune(out: Path, *, keep_last: int, keep_best: int, mode: Mode) -> None:
    """Drop all checkpoints but the newest `keep_last` and the best `keep_best`, and what was left half-written."""
    found = listed(out)
    kept = {one.path for one in [*found[-keep_last:], *best_of(found, keep_best, mode)]}
    for path in (out / "checkpoints").glob("*-*"):
        if path not in kept:
            shutil.rmtree(path)


def _read(path: Path) -> Checkpoint | None:
    try:
        state = json.loads((path / "state.json").read_text())
        whole = all((path / name).stat().st_size == size for name, size in state["files"].items())
        return Checkpoint(path, int(state["step"]), state) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
