"""Evaluation: greedy answers to one or more sets, judged by the verifier service."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from vold_client import Item, Verdict, VerifierClient

from vold_trainer.batching import micro_batches
from vold_trainer.config import DataConfig, EvalConfig
from vold_trainer.data import Example, load_examples
from vold_trainer.models import Student, load_student
from vold_trainer.rollout.base import Rollout
from vold_trainer.rollout.hf import generate
from vold_trainer.run import progress, write_json, write_lines
from vold_trainer.services import open_services


@dataclass(frozen=True)
class SetResult:
    """accuracy: of the n answers that were judged. interval: Wilson's, 95 %. errors: answers nobody could judge."""

    accuracy: float
    n: int
    interval: tuple[float, float]
    by_category: dict[str, dict[str, float]]
    errors: int
    mean_length: float
    truncated: float


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson, 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - spread) / scale, (centre + spread) / scale


def run_eval(config: EvalConfig) -> dict[str, SetResult]:
    """Answer and judge every set of the config; write eval.json and eval_samples.jsonl. Returns results by label."""
    if config.threads:
        torch.set_num_threads(config.threads)
    student = load_student(config.student)
    if torch.cuda.is_available():
        student.model.to(torch.device("cuda"))  # type: ignore[arg-type]
    results: dict[str, SetResult] = {}
    samples: list[dict[str, Any]] = []
    with (
        open_services(verifier=config.verifier) as services,
        VerifierClient(list(services.verifier_urls), timeout=config.verifier.timeout) as verifier,
    ):
        for data in config.data:
            examples = load_examples(data)
            rollouts = answer(student, examples, data, max_tokens=config.max_tokens, batch=config.batch)
            verdicts = verifier.verify([_item(config, rollout) for rollout in rollouts])
            results[data.label] = summarise(rollouts, verdicts)
            for rollout, verdict in list(zip(rollouts, verdicts, strict=True))[: config.samples]:
                samples.append(_sample(data.label, rollout, verdict))
    errors = sum(result.errors for result in results.values())
    write_json(config.out / "eval.json", {**{k: vars(v) for k, v in results.items()}, "errors": errors})
    write_lines(config.out / "eval_samples.jsonl", samples)
    return results


def answer(
    student: Student, examples: Sequence[Example], data: DataConfig, *, max_tokens: int, batch: int
) -> list[Rollout]:
    """Greedy answers, in the order of the examples; prompts of a length are answered together."""
    sizes = [len(example.prompt_text) + 1000 * example.pixels for example in examples]
    found: dict[int, Rollout] = {}
    with progress(f"answering {len(examples)} {data.label} problems", len(examples)) as live:
        for indices in micro_batches(sizes, batch):
            part = generate(student, [examples[i] for i in indices], max_tokens=max_tokens, temperature=0.0)
            found.update(zip(indices, part, strict=True))
            live.update(len(found))
    return [found[index] for index in range(len(examples))]


def summarise(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> SetResult:
    """Accuracy over the judged answers, whole and by category."""
    judged = [(r, v) for r, v in zip(rollouts, verdicts, strict=True) if v.error is None]
    by_category: dict[str, dict[str, float]] = {}
    for name in sorted({rollout.example.category for rollout, _ in judged} - {""}):
        part = [bool(verdict.correct) for rollout, verdict in judged if rollout.example.category == name]
        by_category[name] = {"accuracy": sum(part) / len(part), "n": len(part)}
    correct = sum(bool(verdict.correct) for _, verdict in judged)
    return SetResult(
        accuracy=correct / len(judged) if judged else math.nan,
        n=len(judged),
        interval=wilson(correct, len(judged)),
        by_category=by_category,
        errors=len(verdicts) - len(judged),
        mean_length=sum(len(rollout.ids) for rollout in rollouts) / max(1, len(rollouts)),
        truncated=sum(rollout.truncated for rollout in rollouts) / max(1, len(rollouts)),
    )


def _item(config: EvalConfig, rollout: Rollout) -> Item:
    return Item(
        verifier=str(rollout.example.meta.get("verifier", config.verifier.name)),
        completion=rollout.text,
        reference=rollout.example.reference,
        prompt=rollout.example.prompt_text,
        parameters=dict(rollout.example.meta.get("parameters", config.verifier.parameters)),
        id=rollout.example.id,
    )


def _sample(label: str, rollout: Rollout, verdict: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {
        "modality": label,
        "id": rollout.example.id,
        "prompt": rollout.example.prompt_text,
        "completion": rollout.text,
        "reference": rollout.example.reference,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
    }
    if rollout.example.images:
        row["image"] = data_uri(rollout.example.images[0])
    return row


def data_uri(image: Image.Image) -> str:
    """A picture as a data: address, PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
