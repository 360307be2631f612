"""`vold eval`: generate answers to every test set, store them in batches, verify them, and write the results."""

import asyncio
import base64
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image
from rich.markup import escape
from vold_client import Item, Verdict

from vold_trainer.adapters.registry import REGISTRY
from vold_trainer.config import DataConfig, EvalConfig, dump
from vold_trainer.data import Example
from vold_trainer.data.faults import OnFault, RowFault
from vold_trainer.data.keys import unique_names
from vold_trainer.evaluation.answers import GREEDY, NAME, Answer, AnswerStore, prompt_digest
from vold_trainer.evaluation.results import SetResult, VerifiedExample, error_reasons, summarise
from vold_trainer.files import write_json, write_lines
from vold_trainer.lock import holds_out
from vold_trainer.rollout.hf import generate
from vold_trainer.rollout.stop import read_stop
from vold_trainer.services.items import settle, verifier_item
from vold_trainer.services.local import Services, verifier_client
from vold_trainer.services.opening import Opened, opening
from vold_trainer.sources.check import check_files
from vold_trainer.student.batching import micro_batches
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.readable import check_images, for_readable
from vold_trainer.terminal import console, progress

log = logging.getLogger("vold.rows")


@dataclass(frozen=True)
class GenerationBatch:
    """Completions that are generated in one call: numbers `first` to `first + group - 1` of the problems `indices`."""

    indices: tuple[int, ...]
    first: int
    group: int


@holds_out("eval")
def run_eval(config: EvalConfig, *, fresh: bool = False, opened: Opened | None = None) -> dict[str, SetResult]:
    """Generate and verify answers to every set; write eval.json, eval_samples.jsonl and eval_config.yaml. Returns the
    results by label.

    Answers in `out` are reused, unless `fresh`. opened: the rows and the services, if this process has opened them.
    Raises UsageError if the answers are of another student, of other generation settings, or to other prompts.
    """
    check_files(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with nullcontext(opened) if opened is not None else opening(config) as both:
        return _evaluate(config, list(zip(config.data, both.sets, strict=True)), both.services, fresh=fresh)


def _evaluate(
    config: EvalConfig, sets: Sequence[tuple[DataConfig, Sequence[Example]]], services: Services, *, fresh: bool
) -> dict[str, SetResult]:
    student = load_student(config.student)
    if torch.cuda.is_available():
        student.model.to(torch.device("cuda"))  # type: ignore[arg-type]
    results: dict[str, SetResult] = {}
    samples: list[dict[str, Any]] = []
    weights = student_digest(student)
    with closing(AnswerStore(config.out / NAME, _generation_settings(config, weights), fresh=fresh)) as store:
        (config.out / "eval_config.yaml").write_text(dump(config))
        for data, examples in sets:
            answers = answer_set(student, examples, data, config, store)
            problems = verify_set(examples, answers, data, config, services)
            benchmark = REGISTRY.get(data.adapter)
            result = summarise(
                problems, config.sampling, aggregate=benchmark.aggregate if benchmark else None, seed=config.seed
            )
            unanswered = len(_numbers(config)) * len(problems) - sum(map(len, answers))
            results[data.label] = replace(result, errors=result.errors + unanswered)
            answered = [problem for problem in problems if problem.greedy or problem.sampled]
            samples += [_sample_row(data.label, problem) for problem in answered[: config.samples]]
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
    student: Student, examples: Sequence[Example], data: DataConfig, config: EvalConfig, store: AnswerStore
) -> list[list[Answer]]:
    """The answers to every example, the greedy one first. Missing answers are generated and stored.

    A batch is generated as a whole, with a seed of its own, so that an evaluation that was killed and continued has the
    same answers as one that was not. A row at fault has no answers, which is logged. Raises RowError if it stops the
    evaluation.
    """
    keys = unique_names([example.id for example in examples])
    digests = [prompt_digest(example) for example in examples]
    numbers = _numbers(config)
    faults: dict[int, RowFault] = {}

    def stored(index: int, sample: int) -> Answer | None:
        return store.get(data.label, keys[index], sample, digests[index])

    missing = [
        batch
        for batch in generation_batches(examples, config)
        if any(stored(index, batch.first + offset) is None for index in batch.indices for offset in range(batch.group))
    ]
    total = len(examples) * len(numbers)
    done = total - sum(len(batch.indices) * batch.group for batch in missing)
    if done:
        console.print(f"{data.label}: {done} of {total} answers are in {store.path}", highlight=False, markup=False)
    with progress(f"answering {len(examples)} {data.label} problems", total) as live:
        live.update(done)
        for batch in missing:
            on_fault = None if data.skip_broken is False else _fault_recorder(batch, faults)
            store.add(_generate_batch(student, examples, batch, keys, digests, data.label, config, on_fault))
            done += len(batch.indices) * batch.group
            live.update(done)
    return [
        [answer for n in numbers if i not in faults and (answer := stored(i, n)) is not None]
        for i in range(len(examples))
    ]


def _numbers(config: EvalConfig) -> list[int]:
    """The numbers of the answers to a problem."""
    return [*([GREEDY] if config.greedy else []), *range(config.sampling.n)]


def _fault_recorder(batch: GenerationBatch, faults: dict[int, RowFault]) -> OnFault:
    """Logs the rows at fault of a batch, once each, and adds them to `faults`, by their indices in the set."""

    def record(index: int, fault: RowFault) -> None:
        if batch.indices[index] not in faults:
            log.warning("no answer to a row at fault, which is in no metric: %s", fault)
        faults.setdefault(batch.indices[index], fault)

    return record


def _generate_batch(
    student: Student,
    examples: Sequence[Example],
    batch: GenerationBatch,
    keys: Sequence[str],
    digests: Sequence[str],
    label: str,
    config: EvalConfig,
    on_fault: OnFault | None,
) -> list[Answer]:
    greedy = batch.first == GREEDY
    rollouts = generate(
        student,
        [examples[index] for index in batch.indices],
        group=batch.group,
        max_tokens=config.max_tokens,
        temperature=0.0 if greedy else config.sampling.temperature,
        top_p=1.0 if greedy else config.sampling.top_p,
        stop=read_stop(config.stop, student.tokenizer, student.vocab_size, "stop"),
        seed=_seed(config.seed, label, keys[batch.indices[0]], batch.first),
        on_fault=on_fault,
    )
    return [
        Answer(
            set=label,
            key=keys[index],
            sample=batch.first + rollout.row % batch.group,
            completion=rollout.text,
            tokens=len(rollout.ids),
            truncated=rollout.truncated,
            prompt=digests[index],
        )
        for rollout in rollouts
        for index in (batch.indices[rollout.row // batch.group],)
    ]


def generation_batches(examples: Sequence[Example], config: EvalConfig) -> Iterator[GenerationBatch]:
    """The batches of an evaluation: all greedy completions, then the sampled ones. Prompts of similar length share a
    batch, which has at most `config.batch` sequences.
    """
    sizes = [len(example.prompt_text) + 1000 * example.pixels for example in examples]
    if config.greedy:
        for indices in micro_batches(sizes, config.batch):
            yield GenerationBatch(tuple(indices), GREEDY, 1)
    for first in range(0, config.sampling.n, config.batch):
        group = min(config.batch, config.sampling.n - first)
        for indices in micro_batches(sizes, config.batch // group):
            yield GenerationBatch(tuple(indices), first, group)


def verify_set(
    examples: Sequence[Example],
    answers: Sequence[Sequence[Answer]],
    data: DataConfig,
    config: EvalConfig,
    services: Services,
) -> list[VerifiedExample]:
    """Verify the answers to every example. A verdict that could not be reached has an `error`."""
    items = [
        verifier_item(
            example,
            answer.completion,
            config.verifier.name,
            config.verifier.parameters,
            f"{index}:{answer.sample}",
            zero_on_limit=config.verifier.on_limit == "zero",
        )
        for index, (example, example_answers) in enumerate(zip(examples, answers, strict=True))
        for answer in example_answers
    ]
    verdicts = asyncio.run(_collect_verdicts(items, data, config, services))
    verified = []
    for index, (example, example_answers) in enumerate(zip(examples, answers, strict=True)):
        pairs = [(answer, verdicts[f"{index}:{answer.sample}"]) for answer in example_answers]
        greedy = pairs.pop(0) if config.greedy and pairs else None
        verified.append(VerifiedExample(example, greedy, tuple(pairs)))
    if reasons := error_reasons(verified):
        failed = sum(verdict.error is not None for verdict in verdicts.values())
        message = f"{failed} of {len(items)} answers could not be verified and are in no metric: {'; '.join(reasons)}"
        console.print(f"[yellow]{escape(data.label)}:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return verified


async def _collect_verdicts(
    items: Sequence[Item], data: DataConfig, config: EvalConfig, services: Services
) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = {}
    with progress(f"verifying {len(items)} {data.label} answers", len(items)) as live:
        async with verifier_client(config.verifier, services) as client:
            async for verdict in client.verify_stream(items):
                verdicts[verdict.id] = settle(verdict)
                live.update(len(verdicts))
    return verdicts


def _generation_settings(config: EvalConfig, weights: str) -> dict[str, Any]:
    """The settings that all answers of an evaluation share."""
    sampling = config.sampling
    settings: dict[str, Any] = {
        "student weights": weights,
        "dtype": config.student.dtype,
        "max_tokens": config.max_tokens,
    }
    if config.stop:
        settings["stop"] = config.stop
    if sampling.n:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": config.seed}
    return settings


def student_digest(student: Student) -> str:
    """A digest of the chat template and of about 4,096 values of each weight tensor."""
    digest = hashlib.sha256(str(getattr(student.processor, "chat_template", "")).encode())
    if student.template_variables:
        digest.update(json.dumps(student.template_variables, sort_keys=True).encode())
    for name, tensor in sorted(student.model.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, flat.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def _seed(*parts: object) -> int:
    """A seed derived from the parts; the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _sample_row(label: str, problem: VerifiedExample) -> dict[str, Any]:
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
    if problem.example.images and for_readable(check_images, [problem.example], lambda index, fault: None)[0]:
        row["image"] = data_uri(problem.example.images[0])
    return row


def data_uri(image: Image.Image) -> str:
    """The image as a data URI, PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
