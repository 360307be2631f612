"""Several runs, one after the other, in the processes of one launch: starting them takes longer than the runs.

    torchrun --nproc-per-node 2 launched_runs.py RUNS.json

RUNS.json: a list of ["train" | "sft", folder, overrides]. Then the second process fails by itself, which has to end
both.
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.config import SftConfig, TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.training.train import run_train

Accelerator.end_training = lambda self: None  # which would part the processes after the first run


def main() -> None:
    for kind, out, overrides in json.loads(Path(sys.argv[1]).read_text()):
        if kind == "train":
            run_train(load(TrainConfig, Path("pocket:vold"), [f"out={out}", *overrides]))
        else:
            run_sft(load(SftConfig, Path("pocket:sft"), [f"out={out}", *overrides]))
    ranks = Ranks(make_accelerator())

    def work() -> None:
        if ranks.rank == 1:
            raise UsageError("data.source is not there")

    try:
        ranks.together(work)
    except Exception as error:
        Path(sys.argv[1]).with_name(f"said-{ranks.rank}").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
