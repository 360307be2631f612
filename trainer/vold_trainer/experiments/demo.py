"""`vold demo`: the whole recipe in the pocket world, on two CPU cores.

It starts both services, generates traces, trains the cold start, trains GRPO alone and VOLD in two forms from the same
cold start, and evaluates every stage on text and on pictures. All training is on text; the target is accuracy on
pictures.
"""

import time
from pathlib import Path
from typing import Any

from rich.table import Table
from vold_client import Identity, TeacherClient

from vold_trainer.config import TeacherConfig
from vold_trainer.evaluation import SetResult
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.files import read_json_lines, write_json
from vold_trainer.report import build_report
from vold_trainer.services.keys import api_key
from vold_trainer.terminal import console

STAGES = {
    "base": "base: reads pictures, cannot reason",
    "sft": "SFT on the teacher's traces (text only)",
    "grpo": "SFT + GRPO (text only)",
    "vold": "VOLD, the paper's form (text only)",
    "vold-candidates": "VOLD, candidates (text only)",
}


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
        print_line("1/7 evaluate the base student: it reads the problems, but cannot solve them")
        results["base"] = recipe.evaluate("pocket:student", "base")
        print_line("2/7 traces: the teacher solves problems; only traces that the verifier accepts are written")
        traces, counts = recipe.traces()
        print_line(f"    {counts.written} of {counts.requested} traces written; dropped: {counts.describe_dropped()}")
        print_line("3/7 cold start: supervised fine-tuning on those traces, text only; the vision tower is frozen")
        sft = recipe.sft(traces)
        results["sft"] = recipe.evaluate(sft, "sft")
        print_line("4/7 GRPO alone: the student generates, the verifier rewards; text only")
        grpo = recipe.train("grpo", sft, "grpo")
        results["grpo"] = recipe.evaluate(grpo, "grpo")
        print_line("5/7 VOLD: GRPO, and the teacher scores the tokens of wrong completions; text only")
        vold = recipe.train("vold", sft, "vold")
        results["vold"] = recipe.evaluate(vold, "vold")
        print_line("6/7 VOLD with candidates: the teacher scores the student's 16 most likely tokens at each position")
        candidates = recipe.train("vold-candidates", sft, "vold-candidates")
        results["vold-candidates"] = recipe.evaluate(candidates, "vold-candidates")
    print_line("7/7 the report")
    seconds = time.monotonic() - started
    summary = make_summary(out, results, info.identity, seconds=seconds, seed=seed)
    write_json(out / "summary.json", summary)
    report = build_report(
        [out / name for name in STAGES], out / "report.html", title="vold demo: the pocket world", summary=summary
    )
    console.print(result_table(results))
    print_line(f"{seconds:.0f} s in total; {summary['missing_scores']} scores missing. Open {report}")
    return summary


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
        "missing_scores": count_missing([out / "grpo", out / "vold", out / "vold-candidates"]) + unverified,
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
