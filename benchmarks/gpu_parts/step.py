"""A run of `vold train` with VOLD's objective: student, teacher service and verifier on one machine and one device."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from vold_trainer.config import TrainConfig
from vold_trainer.files import read_json_lines
from vold_trainer.terminal import silence
from vold_trainer.training.train import run_train

from gpu_parts import shapes
from gpu_parts.measure import GIB, Bench
from gpu_parts.teacher import serving

PROMPTS, GROUP = 4, 5
TOKENS = {"real": 256, "tiny": 6}
STEPS = 3
WHOLE_GIB = 110
"""Of the student's and the teacher's weights, gradients and moments: on a device with less, the student has LoRA."""
Interval = tuple[float, float]


def run(bench: Bench) -> None:
    found: dict[str, float] = {}
    setting: dict[str, str] = {}
    bench.together(*(("step", key) for key in bench.rows("step")), ("step_setting", ("student",)))
    with tempfile.TemporaryDirectory() as folder:
        for key in bench.rows("step"):

            def value(name: str = key[0]) -> dict[str, Any]:
                if not found:
                    found.update(measure(bench, Path(folder), setting))
                return {"seconds": found[name], "share": found[name] / found["step"] if found["step"] else None}

            if not bench.row("step", key, value) and not found:
                bench.skip_all("the run did not end: see the first row")
                return
    for key in bench.rows("step_setting"):
        if key[0] in setting:
            bench.row("step_setting", key, lambda key=key: {"value": setting[key[0]]})


def measure(bench: Bench, folder: Path, setting: dict[str, str]) -> dict[str, float]:
    """Train some steps. Returns the median seconds of each lane, and fills `setting`."""
    silence()
    small = bench.cuda and torch.cuda.get_device_properties(bench.device).total_memory < WHOLE_GIB * GIB
    student, teacher = folder / "student", folder / "teacher"
    _, tokenizer = shapes.student_folder(bench.size, student)
    model = shapes.student_model(bench.size, tokenizer, bench.device, torch.bfloat16)
    model.save_pretrained(student)
    del model
    bench.free()
    shapes.teacher_folder(bench.size, teacher)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "what is {n} plus {n}?", "answer": "{2 * n}"}}\n' for n in range(64)))
    whole = {"dtype": "float32", "compute": "bfloat16", "freeze": ["vision", "projector"]}
    own = {"dtype": "bfloat16", "lora": {"r": 16, "alpha": 32}} if small else whole
    with serving(bench, teacher, "auto") as service:
        config = TrainConfig.model_validate(
            {
                "out": folder / "run",
                "student": {"path": str(student), "checkpoint_activations": True, **own},
                "teacher": {"url": service.url, "sane": "off", "timeout": 600},
                "verifier": {"url": "local:", "name": "numeric"},
                "data": {"source": str(rows)},
                "rollout": {"prompts": PROMPTS, "group": GROUP, "max_tokens": TOKENS[bench.size]},
                "objective": {"name": "vold"},
                "batch": {"micro": 1},
                "optim": {"lr": 1e-6},
                "diagnostics": {"every": 0},
                "steps": STEPS,
            }
        )
        bench.begin_peak()
        run_train(config, export=False)
    peak = bench.peak_gib()
    setting |= {
        "student": "LoRA, recomputed" if small else "all weights of the language model, recomputed",
        "prompts x completions": f"{PROMPTS} x {GROUP}",
        "tokens": f"{TOKENS[bench.size]} a completion",
    }
    if peak is not None:
        setting["peak, GiB"] = f"{peak:.1f}, the teacher's process not among them"
    return lanes(folder / "run")


def lanes(out: Path) -> dict[str, float]:
    """Median seconds by lane of the steps after the first: of the union of a lane's spans, and of what two share."""
    metrics = {row["step"]: row for row in read_json_lines(out / "metrics.jsonl")}
    spans: dict[int, dict[str, list[Interval]]] = {}
    for row in read_json_lines(out / "timeline.jsonl"):
        spans.setdefault(row["step"], {}).setdefault(row["lane"], []).append((row["start"], row["end"]))
    found: dict[str, list[float]] = {}
    for step, by_lane in spans.items():
        if step < 2 or step not in metrics:
            continue
        own = {lane: union(intervals) for lane, intervals in by_lane.items()}
        values = {lane: length(intervals) for lane, intervals in own.items()}
        both = length(own.get("teacher", ())) + length(own.get("generate", ()))
        both -= length(union([*own.get("teacher", ()), *own.get("generate", ())]))
        figures = {
            "step": metrics[step]["time/step"],
            "waiting": metrics[step]["time/score_wait"],
            "teacher beside generate": both,
            **{lane: values.get(lane, 0.0) for lane in ("generate", "teacher", "verifier", "optimise")},
        }
        for name, seconds in figures.items():
            found.setdefault(name, []).append(seconds)
    return {name: median(seconds) for name, seconds in found.items()}


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
