"""`vold ablation`: the component table of the VOLD paper in the pocket world, several seeds per row.

A row is a chain of stages. Stages that rows share (traces, cold starts) run once per seed. A finished row stays in its
folder, so that an interrupted ablation continues from there.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from vold_trainer.errors import UsageError
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.files import read_json_lines, write_json
from vold_trainer.report import write_ablation
from vold_trainer.terminal import console, progress, silence

BASE = "pocket:student"
TEACHER, OTHER_TEACHER, VERIFIER = "local:pocket:teacher", "local:pocket:teacher-b", "local:"
OTHER_START = "sft-other"
COMPARED = ("vold", "sft-grpo")
"""The rows whose difference is reported: the effect of the teacher in the second stage."""
LAST_STEPS = 10
"""Training steps over which a row's final reward is averaged."""


@dataclass(frozen=True)
class Row:
    """A row of the table. start: base, sft or sft-other. objective: a shipped train config; None trains nothing."""

    name: str
    label: str
    start: str
    objective: str | None = None
    overrides: tuple[str, ...] = ()


ROWS = (
    Row("base", "base student", "base"),
    Row("sft", "SFT", "sft"),
    Row("grpo-only", "GRPO without SFT", "base", "grpo"),
    Row(
        "opd-only",
        "distillation only, without SFT",
        "base",
        "vold",
        ("objective={name: opd, eps_high: 0.3}",),
    ),
    Row("sft-grpo", "SFT + GRPO", "sft", "grpo"),
    Row("vold-no-sft", "VOLD without SFT", "base", "vold"),
    Row("vold-unmasked", "VOLD, unmasked", "sft", "vold", ("objective.masked=false",)),
    Row("vold", "VOLD", "sft", "vold"),
    Row("other-sft", "SFT on another teacher's traces", OTHER_START),
    Row("other-vold", "another teacher's SFT, then VOLD", OTHER_START, "vold"),
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
    """Run the rows that are missing under `out`; write ablation.json there, and table and plot into `results`.

    workers: how many rows run at the same time, each in a process of its own, sharing the cores. Raises UsageError for
    an unknown row.
    """
    known = {row.name: row for row in ROWS}
    if unknown := sorted(set(only or ()) - set(known)):
        raise UsageError(f"--row {unknown[0]!r} is no row; choose from {', '.join(known)}")
    rows = [row for row in ROWS if only is None or row.name in only]
    start_names = sorted({row.start for row in rows} - {"base"})
    if workers > 1:  # together no more threads than cores
        threads = max(1, (os.cpu_count() or 1) // workers)
        overrides = (*(f"{stage}:threads={threads}" for stage in ("sft", "train", "eval")), *overrides)
    with contextlib.ExitStack() as stack:
        services = stack.enter_context(pocket_services(TEACHER, VERIFIER))
        other = (
            stack.enter_context(pocket_services(OTHER_TEACHER, VERIFIER)) if OTHER_START in start_names else services
        )
        recipes = [Recipe(out / f"seed-{seed}", services, seed, overrides) for seed in range(seeds)]
        starts = [
            (replace(recipe, services=other) if name == OTHER_START else recipe, name)
            for recipe in recipes
            for name in start_names
        ]
        pool = stack.enter_context(_make_pool(workers)) if workers > 1 else None
        _run_all("cold starts of the ablation", cold_start, starts, pool)
        _run_all("rows of the ablation", run_row, [(recipe, row) for row in rows for recipe in recipes], pool)
    result = collect_results(out, rows, seeds)
    write_json(out / "ablation.json", result)
    write_ablation(result, results)
    console.print(summary_table(result))
    if result["comparison"]:
        console.print(result["comparison"]["says"])
    return result


def _make_pool(number: int) -> ProcessPoolExecutor:
    """Worker processes, forked from a server that has done their imports. A fork of this process would inherit parts of
    its gRPC channels.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "__main__"])
    return ProcessPoolExecutor(number, context, initializer=_initialise_worker)


def _run_all(
    label: str, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], pool: ProcessPoolExecutor | None
) -> None:
    """Run the jobs one after another, or in the processes of the pool."""
    if pool is None:
        for job in jobs:
            function(*job)
        return
    with progress(label, len(jobs)) as live:
        for done, future in enumerate(as_completed([pool.submit(function, *job) for job in jobs]), 1):
            future.result()
            live.update(done)


def _initialise_worker() -> None:
    """Silence the output of this process, and end the process when its parent ends, even if the parent is killed."""
    silence()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def run_row(recipe: Recipe, row: Row) -> None:
    """Train and evaluate one row of one seed, unless its eval.json exists. The cold start must exist."""
    if (recipe.out / row.name / "eval.json").is_file():
        return
    student: Path | str = BASE if row.start == "base" else _cold_start_model(recipe, row.start)
    if row.objective is not None:
        student = recipe.train(row.objective, student, row.name, *row.overrides)
    recipe.evaluate(student, row.name)


def cold_start(recipe: Recipe, name: str) -> Path:
    """Generate traces and fine-tune a student on them, unless that student exists. Returns the student's folder."""
    model = _cold_start_model(recipe, name)
    if (model / "config.json").is_file():
        return model
    traces, _ = recipe.traces(f"traces-{name}.jsonl")
    return recipe.sft(traces, f"start-{name}")


def _cold_start_model(recipe: Recipe, name: str) -> Path:
    return recipe.out / f"start-{name}" / "model"


def collect_results(out: Path, rows: Sequence[Row], seeds: int) -> dict[str, Any]:
    """The results in the folders of the rows: {"rows": [{"name", "label", "seeds": [...]}], "n", ...}."""
    row_results = []
    n = 0
    for row in rows:
        seed_results = []
        for seed in range(seeds):
            folder = out / f"seed-{seed}" / row.name
            if not (folder / "eval.json").is_file():
                continue
            evaluation = json.loads((folder / "eval.json").read_text())
            n = evaluation["image"]["n"]
            rewards = [line.get("reward/mean") for line in read_json_lines(folder / "metrics.jsonl")]
            last_rewards = [reward for reward in rewards if reward is not None][-LAST_STEPS:]
            seed_results.append(
                {
                    "seed": seed,
                    "text_accuracy": evaluation["text"]["accuracy"],
                    "image_accuracy": evaluation["image"]["accuracy"],
                    "reward": statistics.fmean(last_rewards) if last_rewards else None,
                }
            )
        row_results.append({"name": row.name, "label": row.label, "seeds": seed_results})
    return {"rows": row_results, "n": n, "command": "make bench-ablation", "comparison": compare_rows(row_results)}


def compare_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The difference of the COMPARED rows in image accuracy, paired by seed: rows of one seed share a cold start.

    None if fewer than two seeds have both rows. spread: the sample standard deviation.
    """
    by_name = {row["name"]: row for row in rows}
    if not all(name in by_name for name in COMPARED):
        return None
    first, second = ({seed["seed"]: seed["image_accuracy"] for seed in by_name[name]["seeds"]} for name in COMPARED)
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if len(differences) < 2:
        return None
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    sentence = (
        f"{by_name[COMPARED[0]]['label']} minus {by_name[COMPARED[1]]['label']}, pictures, seed by seed: "
        f"{', '.join(f'{100 * d:+.1f}' for d in differences)}; mean {100 * mean:+.1f} ± {100 * spread:.1f} points"
    )
    return {"rows": list(COMPARED), "differences": differences, "mean": mean, "spread": spread, "says": sentence}


def summary_table(result: Mapping[str, Any]) -> Table:
    """A table with the mean and standard deviation over seeds of each row."""
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
