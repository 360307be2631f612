"""`vold demo`: the whole recipe in the pocket world, on two CPU cores.

It starts both services, generates traces, trains the cold start, trains GRPO alone and VOLD in two forms from the same
cold start, and evaluates every stage on text and on pictures. The three second stages run at the same time and share
the services. All training is on text; the target is accuracy on pictures.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from vold_client import Identity, TeacherClient

from vold_trainer.config import TeacherConfig
from vold_trainer.evaluation import SetResult
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.experiments.workers import share_of_threads, worker_processes
from vold_trainer.files import read_json_lines, write_json
from vold_trainer.report import build_report
from vold_trainer.services.keys import api_key
from vold_trainer.terminal import console, progress_lines

STAGES = {
    "base": "base: reads pictures, cannot reason",
    "sft": "SFT on the teacher's traces (text only)",
    "grpo": "SFT + GRPO (text only)",
    "vold": "VOLD, the paper's form (text only)",
    "vold-candidates": "VOLD, candidates (text only)",
}
SECOND_STAGES = ("grpo", "vold", "vold-candidates")
"""Names of shipped configs, which are also the names of the runs."""


def run_demo(
    out: Path,
    *,
    teacher_url: str = "local:pocket:teacher",
    verifier_url: str = "local:",
    seed: int = 0,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run all stages in `out`, write summary.json and report.html there, and return the summary."""
    started = time.monotonic()
    print_line("A small vision-language model is trained to reason about pictures, with a text-only teacher.")
    with pocket_services(teacher_url, verifier_url) as services:
        with TeacherClient(list(services.teacher_urls), api_key=api_key(TeacherConfig(), "teacher")) as client:
            info = client.info()
        print_line(
            f"teacher {info.identity.model} ({info.backend}, {info.dtype}) at {services.teacher_urls[0]}, "
            f"weights {info.identity.weights_fingerprint}; verifier at {services.verifier_urls[0]}"
        )
        recipe = Recipe(out, services, seed, overrides)
        results = {}
        print_line("1/5 evaluate the base student: it reads the problems, but cannot solve them")
        results["base"] = recipe.evaluate("pocket:student", "base")
        print_line("2/5 traces: the teacher solves problems; only traces that the verifier accepts are written")
        traces, counts = recipe.traces()
        print_line(f"    {counts.written} of {counts.requested} traces written; dropped: {counts.describe_dropped()}")
        print_line("3/5 cold start: supervised fine-tuning on those traces, text only; the vision tower is frozen")
        sft = recipe.sft(traces)
        results["sft"] = recipe.evaluate(sft, "sft")
        print_line("4/5 three second stages at the same time, text only; the student generates, the verifier rewards:")
        print_line("    GRPO: the rewards alone; VOLD: the teacher also scores the tokens of wrong completions;")
        print_line("    VOLD with candidates: it scores the student's 16 most likely tokens at each position")
        results |= _second_stages(recipe, sft)
    print_line("5/5 the report")
    seconds = time.monotonic() - started
    summary = make_summary(out, results, info.identity, seconds=seconds, seed=seed)
    write_json(out / "summary.json", summary)
    report = build_report(
        [out / name for name in STAGES], out / "report.html", title="vold demo: the pocket world", summary=summary
    )
    console.print(result_table(results))
    print_line(f"{seconds:.0f} s in total; {summary['missing_scores']} scores missing. Open {report}")
    return summary


def _second_stages(recipe: Recipe, cold_start: Path) -> dict[str, dict[str, SetResult]]:
    """Train and evaluate the second stages from the same cold start, each in a process of its own."""
    threads = share_of_threads(len(SECOND_STAGES))
    own = replace(recipe, overrides=(f"train:threads={threads}", f"eval:threads={threads}", *recipe.overrides))
    with worker_processes(len(SECOND_STAGES), __name__) as pool:
        stages = {name: pool.submit(second_stage, own, name, cold_start) for name in SECOND_STAGES}
        _show(recipe.out, stages, recipe.train_steps(SECOND_STAGES[0]))
        return {name: stage.result() for name, stage in stages.items()}


def second_stage(recipe: Recipe, name: str, cold_start: Path) -> dict[str, SetResult]:
    """Train by the shipped config `name`, and evaluate."""
    return recipe.evaluate(recipe.train(name, cold_start, name), name)


def _show(out: Path, stages: Mapping[str, Future], steps: int) -> None:
    """Show how far each stage has come until all have ended. Raises the first stage's error at once."""
    begun = time.time()
    with progress_lines(dict.fromkeys(stages, steps)) as lines:
        pending = set(stages.values())
        while pending:
            ended, pending = wait(pending, timeout=1.0)
            for stage in ended:
                stage.result()
            for name, stage in stages.items():
                metrics = out / name / "metrics.jsonl"
                rows = read_json_lines(metrics)
                if rows and metrics.stat().st_mtime >= begun:  # not an earlier run's, which this one replaces
                    phase = "done" if stage.done() else "evaluating" if len(rows) >= steps else None
                    lines[name].update(len(rows), reward=rows[-1].get("reward/mean"), phase=phase)


def make_summary(
    out: Path, results: dict[str, dict[str, SetResult]], teacher: Identity, *, seconds: float, seed: int
) -> dict[str, Any]:
    """The content of summary.json."""
    unverified = sum(result.errors for sets in results.values() for result in sets.values())
    return {
        "stages": {
            name: {
                "text_accuracy": sets["text"].accuracy,
                "image_accuracy": sets["image"].accuracy,
                "n": sets["image"].n,
            }
            for name, sets in results.items()
        },
        "seconds": seconds,
        "teacher": {
            "model": teacher.model,
            "revision": teacher.revision,
            "weights_fingerprint": teacher.weights_fingerprint,
            "tokenizer_fingerprint": teacher.tokenizer_fingerprint,
        },
        "missing_scores": count_missing([out / name for name in SECOND_STAGES]) + unverified,
        "seed": seed,
    }


def count_missing(runs: list[Path]) -> int:
    """How many scores of teacher and verifier are missing in all steps of the runs."""
    rows = [row for run in runs for row in read_json_lines(run / "metrics.jsonl")]
    return int(sum(row.get(f"missing/{service}") or 0 for row in rows for service in ("teacher", "verifier")))


def result_table(results: dict[str, dict[str, SetResult]]) -> Table:
    """A table of the accuracy of every stage, with the 95 % interval of the accuracy on pictures."""
    table = Table(title="Accuracy on held-out test problems (all training is text only)")
    table.add_column("stage")
    table.add_column("text", justify="right")
    table.add_column("pictures", justify="right", style="bold")
    table.add_column("95 % interval", justify="right")
    table.add_column("n", justify="right")
    for name, sets in results.items():
        image = sets["image"]
        low, high = image.interval
        table.add_row(
            STAGES[name],
            f"{sets['text'].accuracy:.1%}",
            f"{image.accuracy:.1%}",
            f"{low:.1%} to {high:.1%}",
            str(image.n),
        )
    return table


def print_line(text: str) -> None:
    console.print(text, highlight=False, markup=False)
