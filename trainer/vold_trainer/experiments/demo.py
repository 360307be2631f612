"""`vold demo`: the main job, end to end, in the pocket world, on two CPU cores.

Two real services; traces from the teacher; a cold start; GRPO alone and VOLD from the same cold start; every stage
judged on text and on pictures. What reasoning the student learns comes as text; the test is on pictures.
"""

import os
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from vold_client import TeacherClient

from vold_trainer.config import TeacherConfig
from vold_trainer.evaluation import SetResult
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.files import read_json_lines, write_json
from vold_trainer.report import build_report
from vold_trainer.terminal import console

STAGES = {
    "base": "base: reads pictures, reasons poorly",
    "sft": "SFT on the teacher's traces (text only)",
    "grpo": "SFT + GRPO (text only)",
    "vold": "VOLD: SFT + GRPO + teacher (text only)",
}


def run_demo(
    out: Path,
    *,
    teacher_url: str = "local:pocket:teacher",
    verifier_url: str = "local:",
    seed: int = 0,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run all stages into `out`; write summary.json and report.html; return the summary."""
    started = time.monotonic()
    say("A small vision-language model learns to reason about pictures from a text-only teacher.")
    with pocket_services(teacher_url, verifier_url) as services:
        with TeacherClient(list(services.teacher_urls), api_key=os.environ.get(TeacherConfig().api_key_env)) as client:
            info = client.info()
        say(
            f"teacher {info.identity.model} ({info.backend}, {info.dtype}) at {services.teacher_urls[0]}, "
            f"weights {info.identity.weights_fingerprint}; verifier at {services.verifier_urls[0]}"
        )
        recipe = Recipe(out, services, seed, overrides)
        results = {}
        say("1/6 the base student, before it learned anything: it sees the sums, but cannot work them out")
        results["base"] = recipe.evaluate("pocket:student", "base")
        say("2/6 the teacher writes down how it solves 3,000 sums; the verifier keeps what is right")
        traces, kept = recipe.traces()
        say(f"    kept {kept.kept} of {kept.asked} traces; dropped {kept.dropped or 'none'}")
        say("3/6 cold start: the student imitates those traces, as text; its eyes are frozen")
        sft = recipe.sft(traces)
        results["sft"] = recipe.evaluate(sft, "sft")
        say("4/6 GRPO alone: the student tries, the verifier rewards; text only")
        grpo = recipe.train("grpo", sft, "grpo")
        results["grpo"] = recipe.evaluate(grpo, "grpo")
        say("5/6 VOLD: the same, and the teacher scores every token of what went wrong; text only")
        vold = recipe.train("vold", sft, "vold")
        results["vold"] = recipe.evaluate(vold, "vold")
    say("6/6 the report")
    seconds = time.monotonic() - started
    summary = {
        "stages": {
            name: {
                "text_accuracy": found["text"].accuracy,
                "image_accuracy": found["image"].accuracy,
                "n": found["image"].n,
            }
            for name, found in results.items()
        },
        "seconds": seconds,
        "teacher": {
            "model": info.identity.model,
            "revision": info.identity.revision,
            "weights_fingerprint": info.identity.weights_fingerprint,
            "tokenizer_fingerprint": info.identity.tokenizer_fingerprint,
        },
        "missing_scores": count_missing([out / "grpo", out / "vold"])
        + sum(r.errors for f in results.values() for r in f.values()),
        "seed": seed,
    }
    write_json(out / "summary.json", summary)
    report = build_report(
        [out / name for name in STAGES], out / "report.html", title="vold demo: the pocket world", summary=summary
    )
    console.print(table(results))
    say(f"{seconds:.0f} s in all; {summary['missing_scores']} scores missing. Open {report}")
    return summary


def count_missing(runs: list[Path]) -> int:
    """Scores of the teacher and the verifier that did not come, over whole runs."""
    rows = [row for run in runs for row in read_json_lines(run / "metrics.jsonl")]
    return int(sum(row.get(f"missing/{who}") or 0 for row in rows for who in ("teacher", "verifier")))


def table(results: dict[str, dict[str, SetResult]]) -> Table:
    """Accuracy of every stage with its 95 % interval."""
    out = Table(title="Accuracy on test problems never trained on (all training is text only)")
    out.add_column("stage")
    out.add_column("text", justify="right")
    out.add_column("pictures", justify="right", style="bold")
    out.add_column("95 % interval", justify="right")
    out.add_column("n", justify="right")
    for name, found in results.items():
        image = found["image"]
        low, high = image.interval
        out.add_row(
            STAGES[name],
            f"{found['text'].accuracy:.1%}",
            f"{image.accuracy:.1%}",
            f"{low:.1%} to {high:.1%}",
            str(image.n),
        )
    return out


def say(text: str) -> None:
    console.print(text, highlight=False)
