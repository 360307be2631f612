"""`vold ablation`: the paper's component table in the pocket world, every row from several seeds.

A row is a chain of stages; what rows share (traces, cold starts) is made once a seed. Every finished row is kept
in its folder, so that an interrupted ablation goes on where it was.
"""

import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vold_trainer.errors import UsageError
from vold_trainer.report import write_ablation
from vold_trainer.run import console, progress, quiet, read_json_lines, write_json
from vold_trainer.services import Services
from vold_trainer.stages import Recipe, pocket_services

BASE = "pocket:student"
TEACHER, OTHER_TEACHER = "local:pocket:teacher", "local:pocket:teacher-b"
LAST_STEPS = 10
"""Training steps over which a row's final reward is averaged."""


@dataclass(frozen=True)
class Row:
    """One line of the table. start: base, sft or sft-other. objective: a shipped config's name, or None for none."""

    name: str
    label: str
    start: str
    objective: str | None = None
    overrides: tuple[str, ...] = ()


ROWS = (
    Row("base", "base student", "base"),
    Row("sft", "SFT", "sft"),
    Row("grpo-only", "GRPO without SFT", "base", "grpo"),
    Row("opd-only", "distillation only, without SFT", "base", "vold", ("objective.name=opd",)),
    Row("sft-grpo", "SFT + GRPO", "sft", "grpo"),
    Row("vold-no-sft", "VOLD without SFT", "base", "vold"),
    Row("vold-unmasked", "VOLD, unmasked", "sft", "vold", ("objective.masked=false",)),
    Row("vold", "VOLD", "sft", "vold"),
    Row("other-sft", "SFT on another teacher's traces", "sft-other"),
    Row("other-vold", "SFT on another teacher's traces, then VOLD", "sft-other", "vold"),
)


def run_ablation(
    out: Path,
    results: Path,
    *,
    seeds: int = 3,
    workers: int = 1,
    only: Sequence[str] | None = None,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run what is missing under `out`; write ablation.json there, and table and plot into `results`.

    workers: seeds at the same time, each in a process of its own with 2 threads. Raises UsageError for an
    unknown row.
    """
    known = {row.name: row for row in ROWS}
    if unknown := sorted(set(only or ()) - set(known)):
        raise UsageError(f"--row {unknown[0]!r} is no row; choose from {', '.join(known)}")
    rows = [row for row in ROWS if only is None or row.name in only]
    with pocket_services(TEACHER, "local:") as services, pocket_services(OTHER_TEACHER, "local:") as other:
        jobs = [(out / f"seed-{seed}", seed, services, other, tuple(rows), overrides) for seed in range(seeds)]
        if workers <= 1:
            for job in jobs:
                run_seed(*job)
        else:
            with (
                ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
                progress("seeds of the ablation", seeds) as live,
            ):
                futures = [pool.submit(_quiet_seed, *job) for job in jobs]
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    live.update(done)
    result = gather(out, rows, seeds)
    write_json(out / "ablation.json", result)
    write_ablation(result, results)
    console.print(summary_table(result))
    return result


def run_seed(
    out: Path, seed: int, services: Services, other: Services, rows: Sequence[Row], overrides: tuple[str, ...]
) -> None:
    """All rows of one seed, one after another; what is there already is left alone."""
    recipe = Recipe(out, services, seed, overrides)
    starts: dict[str, Callable[[], Path | str]] = {
        "base": lambda: BASE,
        "sft": lambda: _cold_start(recipe, "sft"),
        "sft-other": lambda: _cold_start(Recipe(out, other, seed, overrides), "sft-other"),
    }
    for row in rows:
        if (out / row.name / "eval.json").is_file():
            continue
        student = starts[row.start]()
        if row.objective is not None:
            student = recipe.train(row.objective, student, row.name, *row.overrides)
        recipe.evaluate(student, row.name)


def _cold_start(recipe: Recipe, name: str) -> Path:
    """The traces of the recipe's teacher and the student that imitates them, made once."""
    model = recipe.out / f"start-{name}" / "model"
    if (model / "config.json").is_file():
        return model
    traces, _ = recipe.traces(f"traces-{name}.jsonl")
    return recipe.sft(traces, f"start-{name}")


def _quiet_seed(
    out: Path, seed: int, services: Services, other: Services, rows: Sequence[Row], overrides: tuple[str, ...]
) -> None:
    quiet()
    run_seed(out, seed, services, other, rows, ("sft:threads=2", "train:threads=2", "eval:threads=2", *overrides))


def gather(out: Path, rows: Sequence[Row], seeds: int) -> dict[str, Any]:
    """What the rows' folders hold, as {"rows": [{"name", "label", "seeds": [...]}], "n"}."""
    gathered = []
    n = 0
    for row in rows:
        found = []
        for seed in range(seeds):
            folder = out / f"seed-{seed}" / row.name
            if not (folder / "eval.json").is_file():
                continue
            judged = json.loads((folder / "eval.json").read_text())
            n = judged["image"]["n"]
            rewards = [line.get("reward/mean") for line in read_json_lines(folder / "metrics.jsonl")]
            last = [reward for reward in rewards if reward is not None][-LAST_STEPS:]
            found.append(
                {
                    "seed": seed,
                    "text_accuracy": judged["text"]["accuracy"],
                    "image_accuracy": judged["image"]["accuracy"],
                    "reward": statistics.fmean(last) if last else None,
                }
            )
        gathered.append({"name": row.name, "label": row.label, "seeds": found})
    return {"rows": gathered, "n": n, "command": "make bench-ablation"}


def summary_table(result: Mapping[str, Any]) -> Table:
    """Mean and standard deviation over the seeds, row by row."""
    table = Table(title=f"Components in the pocket world (test set of {result['n']} problems)")
    for name in ("row", "text", "pictures", "final reward", "seeds"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in result["rows"]:
        cells = [_mean_and_spread([seed[key] for seed in row["seeds"]]) for key in ("text_accuracy", "image_accuracy")]
        rewards = [seed["reward"] for seed in row["seeds"] if seed["reward"] is not None]
        reward = f"{statistics.fmean(rewards):.2f}" if rewards else ""
        table.add_row(row["label"], *cells, reward, str(len(row["seeds"])))
    return table


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1%} ± {spread:.1%}"
