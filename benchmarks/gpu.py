"""What no CPU can measure: the teacher and the trainer at the shapes of Qwen3-8B and Qwen2.5-VL-3B, on one GPU.

python benchmarks/gpu.py                      all parts, under 25 minutes together, and the page benchmarks/gpu.md
python benchmarks/gpu.py teacher              one part, under 9 minutes: teacher, update, generation or step
python benchmarks/gpu.py --resume             what a run that was stopped has not measured
python benchmarks/gpu.py --label "after X"    as a section of its own, beside what was measured before
python benchmarks/gpu.py --page               the page alone, from the results that are there
python benchmarks/gpu.py --size tiny --device cpu --out runs/gpu      the same code in a minute, without a GPU

Weights are random and made on the device; nothing is fetched. Results are lines of gpu.jsonl as they come: a part that
is stopped leaves what it has. What is not installed, does not fit or comes too late is written with its reason.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_parts.results import Results, command, measured_rows, read, write_page
from gpu_parts.tables import PARTS

if TYPE_CHECKING:
    from gpu_parts.measure import Bench

HERE = Path(__file__).parent
MINUTES = {"teacher": 8.0, "update": 6.5, "generation": 4.0, "step": 5.0}
"""After which a part begins no further measurement."""
NO_DEVICE = 3
"""The status where there is no GPU to measure."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; without any, all of them")
    parser.add_argument("--size", choices=("real", "tiny"), default="real", help="tiny: to try the code")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="folder of gpu.jsonl and gpu.md; benchmarks/ if absent")
    parser.add_argument("--label", default="", help="a section of its own on the page")
    parser.add_argument("--resume", action="store_true", help="leave out the rows that were measured before")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.part if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if options.out is None and options.device == "cpu" and not options.page:
        parser.error("--device cpu needs --out FOLDER: benchmarks/ holds what GPUs measured")
    folder = options.out or HERE
    if options.page:
        print(write_page(folder, options.size))
        return 0
    if len(options.part) != 1:
        return run_all(options.part or list(PARTS), options, folder)
    return run_part(options.part[0], options, folder, command(arguments))


def run_all(parts: list[str], options: argparse.Namespace, folder: Path) -> int:
    """Each part in a process of its own, so that it leaves no memory to the next. Returns the worst status."""
    rest = ["--size", options.size, "--device", options.device, "--out", str(folder), "--label", options.label]
    rest += ["--resume"] if options.resume else []
    worst = 0
    for part in parts:
        program = [sys.executable, str(HERE / "gpu.py"), part, *rest]
        worst = max(worst, abs(subprocess.run(program, check=False).returncode))  # negative if a signal ended it
        if worst == NO_DEVICE:
            break
    return worst


def run_part(part: str, options: argparse.Namespace, folder: Path, line: str) -> int:
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for what the part starts
    import torch
    from gpu_parts.measure import Bench, machine_facts

    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device: nothing is measured, and nothing estimated in its place")
        return NO_DEVICE
    device = torch.device(options.device)
    results = Results(folder, options.label)
    results.machine(part, machine_facts(device, options.size, line))
    done = measured_rows(read(folder), options.label, part) if options.resume else {}
    bench = Bench(part, options.size, device, results, until=time.monotonic() + 60 * MINUTES[part], done=done)
    if done:
        bench.say(f"{len(done)} rows were measured before, and {bench.count_left} are left")
        if not bench.count_left:
            return 0
    try:
        measure = importlib.import_module(f"gpu_parts.{part}").run
    except ModuleNotFoundError as error:
        bench.skip_all(f"{error.name} is not installed")
        code = 0
    else:
        code = measured(bench, measure)
    bench.say(f"done: {write_page(folder, options.size)}")
    return code


def measured(bench: "Bench", measure: "Callable[[Bench], None]") -> int:
    """Measure a part. What ends it early is written as the reason of all rows that are left; returns the status."""
    import torch

    try:
        measure(bench)
    except torch.OutOfMemoryError:
        bench.skip_all("out of memory")
    except Exception as error:
        traceback.print_exc()
        bench.skip_all(f"{type(error).__name__}: {error}".partition("\n")[0][:200].replace("|", "/"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
