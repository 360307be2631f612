"""`vold eval`: answer every set, keep each batch of answers, judge them, and write what came of it."""

import asyncio
import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from rich.markup import escape
from vold_client import Item, Verdict

from vold_trainer.adapters.registry import REGISTRY
from vold_trainer.config import DataConfig, EvalConfig, dump
from vold_trainer.data import Example
from vold_trainer.evaluation.answers import GREEDY, NAME, Answer, Answers, keys, prompt_digest
from vold_trainer.evaluation.results import SetResult, VerifiedExample, summarise
from vold_trainer.files import write_json, write_lines
from vold_trainer.rollout.hf import generate
from vold_trainer.services.local import Services, open_services, verifier_client
from vold_trainer.sources import load_examples
from vold_trainer.student.batching import micro_batches
from vold_trainer.student.models import Student, load_student
from vold_trainer.terminal import console, progress


@dataclass(frozen=True)
class Unit:
    """Completions that are drawn in one call: samples first to first + group - 1 of the problems `indices`."""

    indices: tuple[int, ...]
    first: int
    group: int


def run_eval(config: EvalConfig, *, fresh: bool = False) -> dict[str, SetResult]:
    """Answer and judge every set; write eval.json, eval_samples.jsonl and eval_config.yaml. Returns results by label.

    Answers that `out` holds already are used, unless `fresh`. Raises UsageError where they are another student's, were
    drawn otherwise, or answer other prompts.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    sets = [(data, load_examples(data)) for data in config.data]
    student = load_student(config.student)
    if torch.cuda.is_available():
        student.model.to(torch.device("cuda"))  # type: ignore[arg-type]
    results: dict[str, SetResult] = {}
    samples: list[dict[str, Any]] = []
    weights = student_digest(student)
    with (
        open_services(verifier=config.verifier) as services,
        closing(Answers(config.out / NAME, _drawn(config, weights), fresh=fresh)) as answers,
    ):
        (config.out / "eval_config.yaml").write_text(dump(config))
        for data, examples in sets:
            found = answer_set(student, examples, data, config, answers)
            problems = judge_set(examples, found, data, config, services)
            benchmark = REGISTRY.get(data.adapter)
            results[data.label] = summarise(
                problems, config.sampling, aggregate=benchmark.aggregate if benchmark else None, seed=config.seed
            )
            samples += [_sample(data.label, problem) for problem in problems[: config.samples]]
    write_json(
        config.out / "eval.json",
        {
            **{label: asdict(result) for label, result in results.items()},
            "errors": sum(result.errors for result in results.values()),
            "student": config.student.path,
            "weights": weights,
            "seed": config.seed,
        },
    )
    write_lines(config.out / "eval_samples.jsonl", samples)
    return results


def answer_set(
    student: Student, examples: Sequence[Example], data: DataConfig, config: EvalConfig, answers: Answers
) -> list[list[Answer]]:
    """Every example's completions, the greedy one first. What `answers` has is taken; the rest is drawn and kept.

    A batch is drawn whole or not at all, with a seed of its own, so that an evaluation that was killed draws in the
    end what it would have drawn at once.
    """
    names, digests = keys(examples), [prompt_digest(example) for example in examples]
    numbers = [*([GREEDY] if config.greedy else []), *range(config.sampling.n)]

    def there(index: int, sample: int) -> Answer | None:
        return answers.get(data.label, names[index], sample, digests[index])

    todo = [
        unit
        for unit in units(examples, config)
        if any(there(index, unit.first + at) is None for index in unit.indices for at in range(unit.group))
    ]
    total = len(examples) * len(numbers)
    done = total - sum(len(unit.indices) * unit.group for unit in todo)
    if done:
        console.print(f"{data.label}: {done} of {total} answers are there already", highlight=False)
    with progress(f"answering {len(examples)} {data.label} problems", total) as live:
        live.update(done)
        for unit in todo:
            greedy = unit.first == GREEDY
            rollouts = generate(
                student,
                [examples[index] for index in unit.indices],
                group=unit.group,
                max_tokens=config.max_tokens,
                temperature=0.0 if greedy else config.sampling.temperature,
                top_p=1.0 if greedy else config.sampling.top_p,
                seed=_seed(config.seed, data.label, names[unit.indices[0]], unit.first),
            )
            answers.add(
                [
                    Answer(
                        set=data.label,
                        key=names[index],
                        sample=unit.first + place % unit.group,
                        completion=rollout.text,
                        tokens=len(rollout.ids),
                        truncated=rollout.truncated,
                        prompt=digests[index],
                    )
                    for place, rollout in enumerate(rollouts)
                    for index in (unit.indices[place // unit.group],)
                ]
            )
            done += len(rollouts)
            live.update(done)
    return [[answer for n in numbers if (answer := there(i, n)) is not None] for i in range(len(examples))]


def units(examples: Sequence[Example], config: EvalConfig) -> Iterator[Unit]:
    """The greedy completions of all, then the sampled ones; prompts of a length together, `batch` sequences at most."""
    sizes = [len(example.prompt_text) + 1000 * example.pixels for example in examples]
    if config.greedy:
        for indices in micro_batches(sizes, config.batch):
            yield Unit(tuple(indices), GREEDY, 1)
    for first in range(0, config.sampling.n, config.batch):
        group = min(config.batch, config.sampling.n - first)
        for indices in micro_batches(sizes, config.batch // group):
            yield Unit(tuple(indices), first, group)


def judge_set(
    examples: Sequence[Example],
    answers: Sequence[Sequence[Answer]],
    data: DataConfig,
    config: EvalConfig,
    services: Services,
) -> list[VerifiedExample]:
    """The verdict on every answer. What keeps an answer from its verdict is the verdict's `error`."""
    items = [
        _item(config, example, answer, f"{at}:{answer.sample}")
        for at, (example, given) in enumerate(zip(examples, answers, strict=True))
        for answer in given
    ]
    verdicts = asyncio.run(_verdicts(items, data, config, services))
    if unjudged := [verdict for verdict in verdicts.values() if verdict.error is not None]:
        says = f"{len(unjudged)} of {len(items)} answers could not be judged, and are in no figure; the first one: "
        console.print(f"[yellow]{data.label}:[/] {says}", escape(str(unjudged[0].error)), highlight=False)
    judged = []
    for at, (example, given) in enumerate(zip(examples, answers, strict=True)):
        pairs = [(answer, verdicts[f"{at}:{answer.sample}"]) for answer in given]
        greedy = pairs.pop(0) if config.greedy else None
        judged.append(VerifiedExample(example, greedy, tuple(pairs)))
    return judged


async def _verdicts(
    items: Sequence[Item], data: DataConfig, config: EvalConfig, services: Services
) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    with progress(f"judging {len(items)} {data.label} answers", len(items)) as live:
        async with verifier_client(config.verifier, services) as client:
            async for verdict in client.verify_stream(items):
                found[verdict.id] = verdict
                live.update(len(found))
    return found


def _item(config: EvalConfig, example: Example, answer: Answer, identifier: str) -> Item:
    return Item(
        verifier=str(example.meta.get("verifier", config.verifier.name)),
        completion=answer.completion,
        reference=example.reference,
        prompt=example.prompt_text,
        parameters=dict(example.meta.get("parameters", config.verifier.parameters)),
        id=identifier,
    )


def _drawn(config: EvalConfig, weights: str) -> dict[str, Any]:
    """What has to be the same for answers to go together."""
    sampling = config.sampling
    drawn: dict[str, Any] = {"student weights": weights, "dtype": config.student.dtype, "max_tokens": config.max_tokens}
    if sampling.n:
        drawn |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": config.seed}
    return drawn


def student_digest(student: Student) -> str:
    """A digest of the weights, up to 4,096 values of each tensor, and of the chat template."""
    digest = hashlib.sha256(str(getattr(student.processor, "chat_template", "")).encode())
    for name, tensor in sorted(student.model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def _seed(*parts: object) -> int:
    """A seed from what names a batch: the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _sample(label: str, problem: VerifiedExample) -> dict[str, Any]:
    answer, verdict = problem.greedy or problem.sampled[0]
    row: dict[str, Any] = {
        "modality": label,
        "id": problem.example.id,
        "prompt": problem.example.prompt_text,
        "completion": answer.completion,
        "reference": problem.example.reference,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "error": None if verdict.error is None else str(verdict.error),
    }
    if problem.example.images:
        row["image"] = data_uri(problem.example.images[0])
    return row


def data_uri(image: Image.Image) -> str:
    """A picture as a data: address, PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
