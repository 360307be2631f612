"""What a teacher costs a training step: GRPO and VOLD from the same student on the same prompts, pocket world.

python benchmarks/step_time.py
"""

import statistics
import tempfile
from pathlib import Path

from common import show
from vold_trainer.config import TrainConfig, load
from vold_trainer.grpo import run_train
from vold_trainer.run import quiet, read_json_lines
from vold_trainer.stages import pocket_services

STEPS, WARM = 12, 2
PARTS = ("time/generate", "time/score_wait", "time/optimise", "time/step")


def main() -> None:
    quiet()
    medians = {}
    with tempfile.TemporaryDirectory() as folder, pocket_services("local:pocket:teacher", "local:") as services:
        for name in ("grpo", "vold"):
            out = Path(folder) / name
            urls = [f"verifier.url={services.verifier_urls[0]}"]
            if name == "vold":
                urls.append(f"teacher.url={services.teacher_urls[0]}")
            run_train(
                load(
                    TrainConfig,
                    Path(f"pocket:{name}"),
                    [f"out={out}", "student.path=pocket:student", f"steps={STEPS}", "optim.lr=1e-8", *urls],
                )
            )
            steps = read_json_lines(out / "metrics.jsonl")[WARM:]
            medians[name] = [statistics.median(step[part] for step in steps) for part in PARTS]
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in medians.items()]
    rows.append(["vold / grpo", *(f"{v / g:.2f}x" for g, v in zip(medians["grpo"], medians["vold"], strict=True))])
    show(
        f"Seconds a step, 16 prompts x 8 completions, median of {STEPS - WARM}",
        ["objective", "generate", "wait for scores", "optimise", "step"],
        rows,
    )


if __name__ == "__main__":
    main()
