"""Faults in a run: an exception, or kill -9, at a point of a step.

faults.py run POINT NUMBER RANK ARGUMENT...           `vold ARGUMENT...`, killed at the NUMBER-th call of the point
faults.py two POINT NUMBER RANK ARGUMENT...           the same in two processes, in process RANK of which it happens
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vold_trainer.cli import main

POINTS = {
    "generate": ("vold_trainer.training.generation", "RolloutGenerator", "generate"),
    "scores": ("vold_trainer.scoring.scorer", "PendingScores", "wait"),
    "backward": ("vold_trainer.processes.wrapping", "PreparedModel", "backward"),
    "optimise": ("torch.optim", "AdamW", "step"),
    "metrics": ("vold_trainer.runs.folder", "RunFolder", "write_metrics"),
    "diagnose": ("vold_trainer.training.diagnostics", "Diagnostics", "metrics"),
    "sync": ("vold_trainer.training.pipeline", "Pipeline", "sync"),
    "tensors": ("vold_trainer.runs.checkpoint", "save_file"),
    "flush": ("vold_trainer.runs.checkpoint", "_flush"),
    "prune": ("vold_trainer.runs.saving", "prune_checkpoints"),
    "export": ("vold_trainer.runs.saving", "Saver", "export"),
    "sft": ("vold_trainer.coldstart.sft", "_forward_backward"),
}
"""Where a fault can be: before the call of this function or method."""


def at(point: str, number: int, fault: Callable[[], Any], replace: Callable[..., Any] = setattr) -> None:
    """Let `fault` happen before the `number`-th call of the point, and never again."""
    module, *names = POINTS[point]
    owner: Any = importlib.import_module(module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    original = getattr(owner, names[-1])
    calls = 0

    def with_fault(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            fault()
        return original(*arguments, **options)

    replace(owner, names[-1], with_fault)


def raise_(error: BaseException) -> None:
    raise error


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def faulty_vold(point: str, number: str, rank: str, *arguments: str) -> None:
    """`vold` with a kill -9, or with number "error:N" an exception, in process `rank`."""
    if os.environ.get("RANK", "0") == rank:
        raises, _, count = number.rpartition(":")
        at(point, int(count), (lambda: raise_(ArithmeticError("a fault"))) if raises else kill)
    sys.argv = ["vold", *arguments]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "two":
        from launched_runs import in_two_processes

        in_two_processes(faulty_vold, *sys.argv[2:])
    else:
        faulty_vold(*sys.argv[2:])
