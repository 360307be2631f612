"""The cost of a teacher per training step: GRPO alone, and VOLD, which adds the teacher, in alternation.

python benchmarks/step_time.py

The same student, prompts and seeds in the pocket world, one thread each for the trainer, the teacher and the verifier,
and a learning rate too small to change the student. "wait" is the time in which a step only waits for scores.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of this process and of the services

from common import show
from training import train
from vold_trainer.experiments.stages import pocket_services
from vold_trainer.terminal import silence

WARMUP_STEPS = 2
PARTS = ("time/generate", "time/score_wait", "time/optimise", "time/step")
OBJECTIVES = ("grpo", "vold")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=4, help="turns of each objective")
    arguments.add_argument("--steps", type=int, default=6, help="steps a turn that count")
    options = arguments.parse_args()
    silence()
    steps_by_objective: dict[str, list[dict[str, float]]] = {name: [] for name in OBJECTIVES}
    ratios = []
    with tempfile.TemporaryDirectory() as folder, pocket_services("local:pocket:teacher", "local:") as services:
        for number in range(options.rounds):
            turn = {}
            for name in OBJECTIVES:
                out = Path(folder) / f"{name}-{number}"
                urls = [f"verifier.url={services.verifier_urls[0]}"]
                if name == "vold":
                    urls.append(f"teacher.url={services.teacher_urls[0]}")
                settings = ["student.path=pocket:student", *urls]
                steps = train(name, out, options.steps + WARMUP_STEPS, settings)[WARMUP_STEPS:]
                steps_by_objective[name] += steps
                turn[name] = statistics.median(step["time/step"] for step in steps)
            ratios.append(turn["vold"] / turn["grpo"])
    medians = {
        name: [statistics.median(step[part] for step in steps) for part in PARTS]
        for name, steps in steps_by_objective.items()
    }
    tokens = {
        name: statistics.median(step["length/mean"] for step in steps) * 128
        for name, steps in steps_by_objective.items()
    }
    rows = [
        [name, f"{tokens[name]:.0f}", *(f"{value:.3f}" for value in values), ""] for name, values in medians.items()
    ]
    shares = [f"{v / g:.2f}x" if g > 1e-3 else "" for g, v in zip(medians["grpo"], medians["vold"], strict=True)]
    turns = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    rows.append(["vold / grpo", "", *shares, turns])
    show(
        f"Seconds a step, 16 prompts x 8 completions, medians of {options.rounds * options.steps} steps",
        ["objective", "tokens", "generate", "wait", "optimise", "step", "a turn's step, vold / grpo"],
        rows,
    )


if __name__ == "__main__":
    main()
