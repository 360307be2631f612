"""How a run begins in its folder: anew, over an old run, or from a checkpoint. Needs no torch: it is checked first."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vold_trainer.errors import UsageError
from vold_trainer.files import read_json_lines

_MARKS = ("config.yaml", "run.json", "metrics.jsonl", "checkpoints", "model", "best")
"""Any of these shows that a run has been in the folder."""

_FILES = (*_MARKS, "timeline.jsonl", "rollouts.jsonl", "report.html",
          "eval.json", "answers.jsonl", "eval_samples.jsonl")  # fmt: skip
"""What a run, its evaluation and its report leave in its folder."""


@dataclass(frozen=True)
class Start:
    """resume: go on from a checkpoint if there is one. step: which: "last", "best" or a number of steps. overwrite:
    delete the run that is in the folder.
    """

    resume: bool = False
    step: str = "last"
    overwrite: bool = False

    def check(self, out: Path, student: str = "") -> None:
        """Raise UsageError if the options contradict each other, the folder holds a run or a student (its path in the
        config) that would be lost, or no checkpoint to go on from.
        """
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other: go on with the run, or delete it")
        if self.step != "last" and not self.resume:
            raise UsageError(f"--step {self.step} says from which checkpoint to go on: add --resume")
        if self.overwrite and student and Path(student).resolve().is_relative_to(out.resolve()):
            raise UsageError(
                f"student.path {student!r} is in out {str(out)!r}, which --overwrite would delete: set another out"
            )
        steps = [str(step) for step in _checkpoint_steps(out)]
        if self.step not in ("last", "best" if steps else "last", *steps):
            choice = f"choose last, best, or one of {', '.join(steps)}" if steps else "there is none: leave --step away"
            raise UsageError(f"{str(out)!r} has no checkpoint of step {self.step!r}: {choice}")
        if not self.resume and not self.overwrite and holds_run(out):
            raise UsageError(
                f"{str(out)!r} holds a run{_progress(out)}: go on with it with --resume, delete it with --overwrite, "
                "or set another out"
            )


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UsageError if a command's output is there already, unless it may be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(f"{str(path)!r} exists: replace it with --overwrite, or set another out")


def traces_are_complete(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether there is nothing to go on with: the traces were finished. Raises UsageError if the options contradict
    each other, or would lose traces.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: go on with the traces, or begin anew")
    unfinished = out.with_name(out.name + ".partial")
    if resume:
        return out.exists() and not unfinished.exists()
    refuse_existing(out, overwrite)
    if unfinished.exists() and not overwrite:
        raise UsageError(
            f"{str(unfinished)!r} holds unfinished traces: go on with --resume, or delete them with --overwrite"
        )
    return False


def holds_run(out: Path) -> bool:
    """Whether a run, finished or not, has been in the folder."""
    return any((out / name).exists() for name in _MARKS)


def clear_run(out: Path) -> None:
    """Delete what a run, its evaluation and its report have written into the folder, and nothing else."""
    for name in _FILES:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _checkpoint_steps(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*") if path.name[5:].isdigit())


def _progress(out: Path) -> str:
    """How far the run in the folder is, as far as its files say."""
    done = [row["step"] for row in read_json_lines(out / "metrics.jsonl") if isinstance(row.get("step"), int)]
    done += _checkpoint_steps(out)
    if not done:
        return ""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return f", {max(done)} of {json.loads((out / 'run.json').read_text())['steps']} steps"
    return f", up to step {max(done)}"
