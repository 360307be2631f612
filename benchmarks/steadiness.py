"""How far the pocket world's results move when nothing that matters changes: the start weights by 1e-6, the threads,
the instruction set, and, with --python, another torch. The largest difference for each stage, in points.

python benchmarks/steadiness.py [--seeds 101,102] [--python OTHER_PYTHON] [--out runs/steadiness]

Every variation repeats the chain of `vold ablation --study steady` from the traces on. Three quarters of an hour on two
cores; a chain that has its results in --out is not run again.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from common import show
from vold_trainer.experiments.controls import perturbed_student
from vold_trainer.experiments.studies import parse_seeds
from vold_trainer.files import read_json_lines

ROWS = {"sft": "SFT", "grpo": "SFT + GRPO", "vold": "VOLD, the paper's form", "candidates": "VOLD, candidates"}
MEASURES = {"text_accuracy": "text", "image_accuracy": "pictures"}
STAGES = ("sft", "train", "eval")
SCALE = 1e-6


def chain(
    out: Path, seeds: str, *overrides: str, workers: int = 2, python: str = sys.executable, **environment: str
) -> dict:
    """The results of one chain, {(row, seed): line}. workers: rows at a time."""
    command = [python, "-m", "vold_trainer", "ablation", "--study", "steady", "--seeds", seeds]
    command += [part for row in ROWS for part in ("--row", row)]
    command += [part for override in overrides for part in ("--set", override)]
    command += ["--out", str(out / "runs"), "--results", str(out), "--workers", str(workers)]
    subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
    return {(line["row"], line["seed"]): line for line in read_json_lines(out / "steady.jsonl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="101,102")
    parser.add_argument("--python", help="an interpreter with another torch in which vold is installed")
    parser.add_argument("--out", type=Path, default=Path("runs/steadiness"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = perturbed_student(args.out / "student", SCALE)
    plain = chain(args.out / "plain", args.seeds)
    varied = {
        f"start weights x (1 + {SCALE:g})": chain(args.out / "start", args.seeds, f"sft:student.path={start}"),
        "2 threads for 1": chain(
            args.out / "threads", args.seeds, *(f"{stage}:threads=2" for stage in STAGES), workers=1
        ),
        "plain instructions": chain(args.out / "instructions", args.seeds, ATEN_CPU_CAPABILITY="default"),
    }
    if args.python:
        varied[f"torch of {args.python}"] = chain(args.out / "torch", args.seeds, python=args.python)
    lines = []
    for name, results in varied.items():
        for row, label in ROWS.items():
            cells = []
            for key in MEASURES:
                moves = [100 * (results[row, seed][key] - plain[row, seed][key]) for seed in parse_seeds(args.seeds)]
                cells.append(", ".join(f"{move:+.1f}" for move in moves))
            lines.append([name, label, *cells])
    show(
        f"What moves without a cause, points, seeds {args.seeds}",
        ["variation", "stage", *MEASURES.values()],
        lines,
    )
    for key, name in MEASURES.items():
        largest = max(
            abs(results[row, seed][key] - plain[row, seed][key])
            for results in varied.values()
            for row in ROWS
            for seed in parse_seeds(args.seeds)
        )
        print(f"largest difference, {name}: {100 * largest:.1f} points")


if __name__ == "__main__":
    main()
