"""Run folders as the trainer writes them, from a seed: what the report's tests and nothing else are fed with."""

import base64
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

HOSTILE = "</script><script>window.hacked=1</script><img src=http://evil.invalid/x onerror=window.hacked=2>"
TEACHER = {
    "model": "pocket-teacher",
    "revision": "r1",
    "weights_fingerprint": "w" * 16,
    "tokenizer_fingerprint": "t" * 16,
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(text: str) -> str:
    image = Image.new("RGB", (196, 56), "white")
    ImageDraw.Draw(image).text((16, 20), text, fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_run(path: Path, objective: str, *, steps: int = 60, seed: int = 0, missing: bool = False) -> Path:
    """A complete run of `steps` steps that learns; `missing` leaves teacher scores out here and there."""
    rng = random.Random(f"{objective} {seed}")
    path.mkdir(parents=True)
    about = {"kind": "train", "objective": objective, "teacher": TEACHER, "seed": seed, "steps": steps}
    (path / "run.json").write_text(
        json.dumps({**about, "started": "2026-01-02T03:04:05Z", "student": "runs/sft/model"})
    )
    settings = {
        "objective": {"name": objective, "beta": 0.1},
        "teacher": {"url": "grpc://teacher:50051", "api_key": "sk-1"},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    write_lines(
        path / "metrics.jsonl", [metrics_row(rng, step, steps, objective, missing) for step in range(1, steps + 1)]
    )
    write_lines(path / "timeline.jsonl", [span for step in range(1, steps + 1) for span in spans(rng, step)])
    every = range(1, steps + 1, 2)
    write_lines(
        path / "rollouts.jsonl", [rollout(rng, step, i, step / steps, missing) for step in every for i in range(8)]
    )
    by_category = {"two terms": {"accuracy": 0.9, "n": 200}, "four terms": {"accuracy": 0.4125, "n": 300}}
    score = {"accuracy": 0.6075, "n": 500, "interval": [0.564, 0.649], "by_category": by_category}
    more = {"pass@4": {"value": 0.81, "interval": [0.78, 0.84]}, "mean@4": 0.66, "mean_length": 41.5}
    text = {"accuracy": 0.7, "n": 500, "interval": None, "by_category": {}, **more}
    (path / "eval.json").write_text(json.dumps({"image": score, "text": text, "errors": 0}))
    write_lines(path / "eval_samples.jsonl", [sample(rng, i) for i in range(40)])
    return path


def metrics_row(rng: random.Random, step: int, steps: int, objective: str, missing: bool) -> dict[str, Any]:
    done = step / steps
    noise = lambda size: rng.gauss(0, size)  # noqa: E731
    correct = min(
        1.0, max(0.0, 0.33 + (0.22 if objective == "vold" else 0.08) * (1 - math.exp(-3 * done)) + noise(0.04))
    )
    gap = -1.2 * math.exp(-2 * done) - 0.1 + noise(0.05)
    return {
        "step": step,
        "time": 0.65 * step,
        "loss": 0.2 * (1 - done) + noise(0.03),
        "reward/mean": correct,
        "reward/std": 0.45 + noise(0.01),
        "reward/correct": correct,
        "teacher/k2": gap * gap / 2,
        "teacher/k2_correct": gap * gap / 4 if step % 7 else None,
        "teacher/k2_wrong": gap * gap,
        "teacher/gap": gap,
        "teacher/gap_correct": gap / 2,
        "teacher/gap_wrong": gap * 1.4,
        "student/entropy": 0.8 - 0.3 * done + noise(0.02),
        "length/mean": 38 + 10 * done + noise(1),
        "length/mean_correct": 34 + 10 * done + noise(1),
        "length/mean_wrong": 42 + 10 * done + noise(1),
        **(health(noise, done) if step % 10 == 0 or step == 1 else {}),
        "length/truncated": 0.02 * (1 - done),
        "missing/teacher": float(missing and step == 5),
        "missing/verifier": 0.0,
        "missing/masked_positions": 16.0,
        "clip/high": 0.01,
        "clip/low": 0.004,
        "grad_norm": 1 + noise(0.2),
        "lr": 1e-4 * (1 - done),
        "time/generate": 0.4,
        "time/score_wait": 0.02,
        "time/optimise": 0.2,
        "time/step": 0.65,
        "tokens/per_second": 7500 + noise(300),
        "groups/all_correct": 0.1 * done,
        "groups/all_wrong": 0.3 * (1 - done),
        "verifier/queue_depth": 3 + noise(1),
        "gap_by_position": [gap * (1.5 - i / 10) + noise(0.1) if i < 9 or step % 5 else None for i in range(10)],
    }


def health(noise: Callable[[float], float], done: float) -> dict[str, Any]:
    """What a run measures every tenth step."""
    ratio = 0.72 + 0.19 * done + noise(0.01)
    return {
        "teacher/entropy": 0.2 + noise(0.01),
        "entropy/gap": -0.6 + 0.3 * done + noise(0.02),
        "entropy/gap_correct": -0.5 + 0.3 * done + noise(0.02),
        "entropy/gap_wrong": -0.7 + 0.3 * done + noise(0.02),
        "overlap/ratio": ratio,
        "overlap/ratio_correct": ratio + 0.03,
        "overlap/ratio_wrong": ratio - 0.04,
        "overlap/student_mass": 0.97,
        "overlap/teacher_mass": 0.985,
        "overlap_by_position": [ratio + 0.05 - 0.01 * i for i in range(10)],
    }


def spans(rng: random.Random, step: int) -> list[dict[str, Any]]:
    start = 0.65 * step
    found = [{"step": step, "lane": "generate", "start": start, "end": start + 0.4}]
    for i in range(3):
        ready = start + 0.12 * (i + 1) + rng.random() * 0.02
        found.append({"step": step, "lane": "teacher", "start": ready, "end": ready + 0.08})
        found.append({"step": step, "lane": "verifier", "start": ready, "end": ready + 0.05})
    found.append({"step": step, "lane": "wait", "start": start + 0.4, "end": start + 0.45})
    found.append({"step": step, "lane": "optimise", "start": start + 0.45, "end": start + 0.62})
    if step % 20 == 0:
        found.append({"step": step, "lane": "checkpoint", "start": start + 0.62, "end": start + 0.64})
    return found


def rollout(rng: random.Random, step: int, index: int, done: float, missing: bool) -> dict[str, Any]:
    terms = [rng.randint(1, 20) for _ in range(rng.randint(2, 4))]
    text = " + ".join(map(str, terms)) + " = ?\n"
    total = terms[0]
    for term in terms[1:]:
        text += f"{total} + {term} = {total + term}\n"
        total += term
    right = rng.random() < 0.3 + 0.3 * done
    answer = total if right else total + rng.choice([-10, 1, 2])
    tokens = [*text, *"\\boxed{", *str(answer), "}", "<|im_end|>"]
    student = [-abs(rng.gauss(0, 0.3)) for _ in tokens]
    teacher: list[float | None] = [value + rng.gauss(0, 0.15) for value in student]
    for i in rng.sample(range(len(tokens)), 4):
        teacher[i] = student[i] - abs(rng.gauss(0, 2 if right else 4))
    for i in rng.sample(range(len(tokens)), 5):
        teacher[i] = student[i] + abs(rng.gauss(0, 1.5))
    teacher[-1] = None
    if missing and index == 3:
        teacher = [None] * len(tokens)
    return {
        "step": step,
        "id": f"{step}-{index}",
        "prompt": f"Compute {' + '.join(map(str, terms))}.",
        "reference": str(total),
        "tokens": tokens,
        "student_logprobs": student,
        "teacher_logprobs": teacher,
        "reward": float(right),
        "correct": right,
        "extracted": str(answer),
        "reason": "equal" if right else f"{answer} is not {total}",
        **({"images": [picture(" + ".join(map(str, terms)))]} if index % 4 == 1 else {}),
    }


def sample(rng: random.Random, index: int) -> dict[str, Any]:
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    right, modality = rng.random() < 0.6, ("image", "text")[index % 2]
    answer = a + b + (0 if right else 1)
    row = {
        "modality": modality,
        "id": f"{modality}-{index}",
        "prompt": "What is the value?",
        "reference": str(a + b),
        "completion": f"{a} + {b} = ?\n{a} + {b} = {answer}\n\\boxed{{{answer}}}",
        "extracted": str(answer),
        "correct": right,
    }
    return row | ({"image": picture(f"{a} + {b} = ?")} if modality == "image" else {})


def summary() -> dict[str, Any]:
    scores = {"base": (0.124, 0.151), "sft": (0.442, 0.401), "grpo": (0.536, 0.488), "vold": (0.6075, 0.552)}
    stages = {name: {"image_accuracy": i, "text_accuracy": t, "n": 500} for name, (i, t) in scores.items()}
    return {"stages": stages, "seconds": 431.7, "teacher": TEACHER, "missing_scores": 0}


def ablation() -> dict[str, Any]:
    rng = random.Random(0)
    rows = []
    for i, label in enumerate(
        ["base", "SFT", "GRPO without SFT", "distillation only", "SFT + GRPO", "VOLD unmasked", "VOLD"]
    ):
        seeds = [
            {
                "seed": s,
                "image_accuracy": 0.1 + 0.08 * i + rng.gauss(0, 0.02),
                "text_accuracy": 0.12 + 0.07 * i,
                "reward": None,
            }
            for s in range(3)
        ]
        rows.append({"name": label.lower(), "label": label, "seeds": seeds})
    return {"rows": rows}
