"""Two processes of one launch by torchrun's own agent, which forks them here: their imports are done already.

    launched_runs.py runs RUNS.json     several runs one after the other, as starting them takes longer than the runs
    launched_runs.py vold ARGUMENT...   a command of vold

RUNS.json: a list of ["train" | "sft", folder, overrides]. Then each process writes how long a collective operation of
the devices may take, and the second process fails by itself, which has to end both.
"""

import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from vold_trainer.cli import main
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.config import SftConfig, TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.training.train import run_train


def in_two_processes(work: Callable[..., None], *arguments: object) -> None:
    """As `torchrun --standalone --nproc-per-node=2` starts them, but for the fork."""
    config = LaunchConfig(
        *(1, 1, 2),
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    elastic_launch(config, work)(*arguments)


def runs(file: Path) -> None:
    Accelerator.end_training = lambda self: None  # which would part the processes after the first run
    for kind, out, overrides in json.loads(file.read_text()):
        if kind == "train":
            run_train(load(TrainConfig, Path("pocket:vold"), [f"out={out}", *overrides]))
        else:
            run_sft(load(SftConfig, Path("pocket:sft"), [f"out={out}", *overrides]))
    ranks = Ranks(make_accelerator())
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    file.with_name(f"timeout-{ranks.rank}").write_text(str(backend.options._timeout))

    def work() -> None:
        if ranks.rank == 1:
            raise UsageError("data.source is not there")

    try:
        ranks.run_on_all(work)
    except Exception as error:
        file.with_name(f"said-{ranks.rank}").write_text(f"{type(error).__name__}: {error}")


def vold(*arguments: str) -> None:
    sys.argv = ["vold", *arguments]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "runs":
        in_two_processes(runs, Path(sys.argv[2]))
    else:
        in_two_processes(vold, *sys.argv[2:])
