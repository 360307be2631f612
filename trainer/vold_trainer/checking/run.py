"""The checks of a `vold train` config, topic by topic. An error in one topic does not stop the next check."""

import contextlib
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from vold_client import AsyncTeacherClient, Completion, Item, Verdict, VoldError

from vold_trainer.checking.findings import CheckReport
from vold_trainer.checking.memory import MemoryEstimate, ModelSize, available_memory, estimate_memory, format_bytes
from vold_trainer.config import OF_TEACHER, REFERENCE, ScoringModelConfig, TokenConfig, TrainConfig, VerifierConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import RowFault
from vold_trainer.files import read_json_lines
from vold_trainer.lock import check_free
from vold_trainer.objectives import Needs
from vold_trainer.processes.optim import require_trainable_parameters
from vold_trainer.processes.rounding import rounding_warning
from vold_trainer.runs.start import holds_run
from vold_trainer.scoring.pace import describe_slow_quota, teacher_tokens
from vold_trainer.scoring.teacher_tokens import tokens_of_teachers
from vold_trainer.scoring.teachers import Teacher, TeacherRequirements, TeacherRouter
from vold_trainer.scoring.twins import TeacherPrompts, check_twins
from vold_trainer.sentences import sentence
from vold_trainer.services.items import verifier_item, verifier_name, verifier_trials
from vold_trainer.services.local import Services, open_services, teacher_client, verifier_client
from vold_trainer.services.verifiers import MAX_FAULTS, Fault, find_faults
from vold_trainer.sources import load_examples
from vold_trainer.sources.check import check_student, check_traces
from vold_trainer.student.added_tokens import describe_tokens
from vold_trainer.student.lengths import REMEDY, describe_long, find_long, known_lengths, measure
from vold_trainer.student.models import Student, load_student
from vold_trainer.tasks import ClientTasks
from vold_trainer.terminal import progress, silenced
from vold_trainer.training.train import run_train

MAX_MEASURED_IMAGES = 2000
"""How many prompts with images are processed to measure their lengths, at most."""
MAX_VERIFIED_REFERENCES = 64
"""How many references are verified as answers to themselves, about."""
READY_SECONDS = 3.0
"""How long a service may take to be ready. A run waits longer, because services may start with it."""
PROBE_TOKENS = 256
DRY_TOKENS, DRY_PROMPTS = 64, 2


def run_check(config: TrainConfig, *, dry: bool = True) -> CheckReport:
    """Check everything that a run needs; nothing is written to its folder.

    dry: also run one small step, from generation to the policy update, in a temporary folder.
    """
    report = CheckReport()
    with progress("checking", 5) as live:
        examples = _check_data(config, report)
        live.update(1)
        student, lengths = _check_student(config, report, examples)
        live.update(2)
        _check_memory(config, report, student, lengths)
        live.update(3)
        _check_services(config, report, student, examples, lengths)
        live.update(4)
        _check_folder(config, report)
        if dry and report.passed:
            _run_dry_step(config, report)
        live.update(5)
    return report


def _check_data(config: TrainConfig, report: CheckReport) -> list[Example]:
    examples: list[Example] = []
    with report.catch_errors("data"):
        examples = load_examples(config.data)
        per_step = config.rollout.prompts
        passes = config.steps * per_step / len(examples)
        report.ok(
            "data",
            f"{len(examples):,} prompts from {config.data.source}; {config.steps} steps of {per_step} prompts are "
            f"{passes:.2g} epochs",
        )
        if len(examples) < per_step:
            report.warning(
                "data", f"a step takes {per_step} prompts, so it repeats some of them: lower rollout.prompts"
            )
        ids = Counter(example.id for example in examples)
        if repeated := [name for name, count in ids.items() if count > 1]:
            report.warning("data", f"{len(repeated):,} ids are on several rows, for example {repeated[0]!r}")
        if images := sum(bool(example.images) for example in examples):
            report.ok("data", f"{images:,} prompts have images")
    with report.catch_errors("traces"):
        check_traces(config)
    return examples


def _check_student(
    config: TrainConfig, report: CheckReport, examples: Sequence[Example]
) -> tuple[Student | None, list[int]]:
    """(the student, the lengths of the measured prompts in tokens)"""
    student, lengths = None, list[int]()
    with report.catch_errors("student"):
        check_student(config.student)
        student = load_student(config.student, _teachers_tokens(config))
        trainable = sum(value.numel() for value in require_trainable_parameters(student.model))
        total = sum(value.numel() for value in student.model.parameters())
        report.ok(
            "student",
            f"{type(student.model).__name__}, {_count(total)} parameters, {_count(trainable)} of them trainable, "
            f"{config.student.dtype}",
        )
        if student.added_tokens:
            news = "gets at their ids" if student.new_tokens else "has got before"
            report.ok("student", f"the tokens that it {news} (add_tokens): {describe_tokens(student.added_tokens)}")
        if warning := rounding_warning(student.model, config.optim.lr):
            report.warning("student", warning)
        lengths = _check_lengths(config, report, student, _measure_prompts(config, report, student, examples))
    return student, lengths


def _teachers_tokens(config: TrainConfig) -> list[TokenConfig] | None:
    """The tokens that the student may get from the teachers, if the config asks for them."""
    if config.student.add_tokens != OF_TEACHER or not config.used_teachers:
        return None
    with open_services(teachers=config.used_teachers, patience=READY_SECONDS) as services:
        return tokens_of_teachers(config, services)


def _check_lengths(
    config: TrainConfig, report: CheckReport, student: Student, measured: Sequence[tuple[Example, int]]
) -> list[int]:
    """The lengths of the prompts that leave room for a completion. Those that do not are reported as a run says it."""
    if not measured:
        return []
    lengths = sorted(length for _, length in measured)
    text = (
        f"prompts have {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}; with "
        f"rollout.max_tokens {config.rollout.max_tokens} a sequence has at most "
        f"{lengths[-1] + config.rollout.max_tokens:,}"
    )
    long = find_long(student, measured, config.rollout.max_tokens)
    if not long:
        report.ok("student", text)
        return lengths
    text = f"{text}. {describe_long(long, len(measured))}"
    if config.data.skip_broken and len(long) < len(measured):
        report.warning("student", text)
    else:
        report.error("student", f"{text} {REMEDY}")
    return lengths[: len(lengths) - len(long)]


def _measure_prompts(
    config: TrainConfig, report: CheckReport, student: Student, examples: Sequence[Example]
) -> list[tuple[Example, int]]:
    """The prompts with their lengths in tokens, without those of rows at fault, which are reported. Of prompts with
    images the first MAX_MEASURED_IMAGES are measured with the images, the others without.
    """
    pictured = [example for example in examples if example.images][:MAX_MEASURED_IMAGES]
    exact = {id(example) for example in pictured}
    others = [example for example in examples if id(example) not in exact]
    faults: list[RowFault] = []

    def whole_lengths(part: Sequence[Example]) -> list[int]:
        return [len(ids) for ids in student.prompt_ids(part)]

    lengths = measure(whole_lengths, pictured, faults.append)
    lengths += measure(partial(known_lengths, student), others, faults.append)
    pairs = zip((*pictured, *others), lengths, strict=True)
    measured = _limited(config, report, [(example, length) for example, length in pairs if length])
    if faults:
        text = f"{len(faults)} of {len(examples):,} rows are at fault for this student: {faults[0]}"
        if config.data.skip_broken:
            report.warning("data", text)
        else:
            report.error("data", f"{text}. Mend them, or set data.skip_broken=true")
    return measured


def _limited(
    config: TrainConfig, report: CheckReport, measured: list[tuple[Example, int]]
) -> list[tuple[Example, int]]:
    """The prompts within `data.max_prompt_tokens`; the others are counted in the report."""
    limit = config.data.max_prompt_tokens
    if limit is None:
        return measured
    kept = [pair for pair in measured if pair[1] <= limit]
    count = len(measured) - len(kept)
    text = f"{count:,} of {len(measured):,} prompts have more than data.max_prompt_tokens {limit:,}"
    if count and config.data.too_long == "error":
        report.error("data", f"{text}: raise it, or leave such rows out with data.too_long=drop")
    elif measured and not kept:
        report.error("data", f"{text}: raise it")
    else:
        report.ok("data", f"{text}{' and are dropped' if count else ''}")
    return kept


def _check_memory(config: TrainConfig, report: CheckReport, student: Student | None, lengths: Sequence[int]) -> None:
    if student is None:
        return
    text_config = student.model.config.get_text_config()
    model = ModelSize.of(
        student.model, text_config, config.student.dtype, config.student.compute, config.student.head_dtype
    )
    prompt = max(lengths, default=0)
    rollouts = config.rollout.prompts * config.rollout.group
    estimate = partial(
        estimate_memory,
        model,
        tokens=prompt + config.rollout.max_tokens,
        micro_batch=config.batch.micro,
        generation_batch=0 if config.rollout.engine != "hf" else config.rollout.batch or rollouts,
        checkpointing=config.student.checkpoint_activations,
        prompt=prompt,
        group=config.rollout.group,
        fused=torch.cuda.is_available(),
        reference=config.copies_start,
    )
    needed, spread = estimate(), estimate(processes=2)
    free, device = available_memory()
    peak = f"peak of about {format_bytes(needed.peak)}, with {format_bytes(free)} available ({device})"
    text = f"{peak}: {_describe_memory(needed)}"
    if spread.peak > needed.peak:
        text += f"; in each of several processes (DDP) about {format_bytes(spread.peak)}"
    if needed.peak <= 0.9 * free:
        report.ok("memory", text)
        return
    report.warning("memory", f"{text}. {_memory_advice(config, needed)}")


def _describe_memory(needed: MemoryEstimate) -> str:
    parts = {"weights": needed.weights, "optimizer": needed.moments}
    if needed.generation > needed.update:
        parts |= {
            "the reference": needed.reference,
            "casts of the weights": needed.generation_casts,
            "cache": needed.cache,
            "a decoding step": needed.decoding,
        }
        return f"during generation {_list_parts(parts)}"
    parts |= {"gradients": needed.gradients, "the reference": needed.reference}
    if needed.step > needed.micro_batch:
        parts["the optimizer's step"] = needed.temporaries
    else:
        parts |= {
            "activations": needed.activations,
            "casts of the weights": needed.casts,
            "logits": needed.logits,
        }
    return f"during the policy update {_list_parts(parts)}"


def _list_parts(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {format_bytes(count)}" for name, count in parts.items() if count)


def _memory_advice(config: TrainConfig, needed: MemoryEstimate) -> str:
    """The change that saves the most memory."""
    if needed.generation > needed.update:
        return "Lower rollout.batch, so that fewer sequences are generated together"
    if needed.activations > needed.weights + needed.gradients + needed.moments:
        if not config.student.checkpoint_activations:
            return "Set student.checkpoint_activations=true"
        return "Lower batch.micro" if config.batch.micro > 1 else "Lower rollout.max_tokens"
    return "Shard the student over several devices, or train adapters (student.lora) instead of the weights"


def _check_services(
    config: TrainConfig,
    report: CheckReport,
    student: Student | None,
    examples: Sequence[Example],
    lengths: Sequence[int],
) -> None:
    models = config.used_scoring_models
    if models:
        with report.catch_errors("teacher"):
            TeacherRouter(config).check(examples if config.used_teachers else ())
            check_twins(examples)
    for name, teacher in models.items():
        topic = "reference" if name == REFERENCE else f"teacher {name}" if name else "teacher"
        with report.catch_errors(topic), open_services(teachers={name: teacher}, patience=READY_SECONDS) as services:
            _check_teacher(config, name, teacher, services, topic, report, student, examples, lengths)
    if config.verifier is not None:
        with (
            report.catch_errors("verifier"),
            open_services(verifier=config.verifier, patience=READY_SECONDS) as services,
        ):
            _check_verifier(config.verifier, services, report, examples)


def _check_teacher(
    config: TrainConfig,
    name: str,
    teacher: ScoringModelConfig,
    services: Services,
    topic: str,
    report: CheckReport,
    student: Student | None,
    examples: Sequence[Example],
    lengths: Sequence[int],
) -> None:
    tasks = ClientTasks()
    connected = Teacher(name, teacher, tasks.run(_make_client(teacher, services, name)))
    try:
        info = tasks.run(connected.client.info())
        capabilities = ", ".join(sorted(info.capabilities))
        report.ok(
            topic,
            f"{info.identity.model} at {teacher.url}, weights {info.identity.weights_fingerprint[:12]}, backend "
            f"{info.backend}, {info.dtype}; capabilities {capabilities}",
        )
        if student is None:
            return
        needs = Needs(teacher=True) if name == REFERENCE else config.objective.needs
        required = TeacherRequirements(config.objective.name, needs, config.rollout.temperature)
        connected.complete_handshake(info, tasks.run(connected.client.tokenizer()), student, required)
        report.ok(topic, connected.describe_handshake())
        longest = max(lengths, default=1) + config.rollout.max_tokens
        if longest > info.max_sequence:
            report.error(
                topic,
                f"the longest prompt with its completion may have {longest:,} tokens, and the teacher takes "
                f"{info.max_sequence:,}: lower rollout.max_tokens, or serve the teacher with a larger --max-sequence",
            )
        _check_quota(config, connected, topic, report, tasks, student, examples)
        _probe_teacher(config, connected, info.max_sequence, topic, report, tasks)
    finally:
        tasks.run(connected.client.aclose())
        tasks.close()


def _check_quota(
    config: TrainConfig,
    teacher: Teacher,
    topic: str,
    report: CheckReport,
    tasks: ClientTasks,
    student: Student,
    examples: Sequence[Example],
) -> None:
    """Warn if a step needs more tokens than the teacher's tenant has in a minute."""
    with contextlib.suppress(VoldError):  # a service of an earlier version does not tell
        quota = tasks.run(teacher.client.quota())
        router = TeacherRouter(config)
        own = [example for example in examples if teacher.name == REFERENCE or router(example) == teacher.name]
        share = len(own) / max(1, len(examples))
        tokens = teacher_tokens(TeacherPrompts(student, teacher), config.rollout, own, share)
        if text := describe_slow_quota(teacher.key, quota, len(teacher.client.urls), tokens):
            report.warning(topic, text)


def _probe_teacher(
    config: TrainConfig, teacher: Teacher, max_sequence: int, topic: str, report: CheckReport, tasks: ClientTasks
) -> None:
    """Time one scoring request of a single completion."""
    assert teacher.handshake is not None
    shared_ids = teacher.handshake.shared_V.nonzero().flatten().tolist()
    count = min(PROBE_TOKENS, max_sequence - 1)
    ids = [shared_ids[index % len(shared_ids)] for index in range(count)]
    started = time.monotonic()
    reply = tasks.run(
        teacher.client.score([[shared_ids[0]]], [Completion(0, ids)], temperature=config.rollout.temperature)
    )
    seconds = time.monotonic() - started
    if (error := reply.scores[0].error) is not None:
        report.error(topic, f"a completion of {count} tokens was not scored: {error}")
        return
    rollouts = config.rollout.prompts * config.rollout.group
    report.ok(
        topic,
        f"scored a completion of {count} tokens in {seconds:.2g} s; a step has {rollouts} completions of up to "
        f"{config.rollout.max_tokens}",
    )


async def _make_client(teacher: ScoringModelConfig, services: Services, name: str) -> AsyncTeacherClient:
    return teacher_client(teacher, services, name=name)


def _check_verifier(
    config: VerifierConfig, services: Services, report: CheckReport, examples: Sequence[Example]
) -> None:
    tasks = ClientTasks()

    async def find() -> list[Fault]:
        async with verifier_client(config, services) as client:
            return await find_faults(client, verifier_trials(examples, config.name, config.parameters))

    async def verify(items: list[Item]) -> list[Verdict]:
        async with verifier_client(config, services) as client:
            return await client.verify(items)

    rows_by_verifier = Counter(verifier_name(example, config.name) for example in examples) or Counter([config.name])
    try:
        if faults := tasks.run(find()):
            for fault in faults[:MAX_FAULTS]:
                report.error("verifier", fault.text)
            return
        report.ok("verifier", f"{config.url} has {', '.join(f'{n} ({c:,} rows)' for n, c in rows_by_verifier.items())}")
        if not examples:
            return
        step = max(1, math.ceil(len(examples) / MAX_VERIFIED_REFERENCES))
        sample = examples[::step]
        verdicts = tasks.run(verify([_reference_as_answer(config, example) for example in sample]))
        accepted = sum(bool(verdict.correct) for verdict in verdicts)
        text = f"{accepted} of {len(sample)} references are accepted as answers in \\boxed{{}}"
        if accepted == len(sample):
            report.ok("verifier", text)
            return
        rejected, verdict = next((e, v) for e, v in zip(sample, verdicts, strict=True) if not v.correct)
        reason = sentence(verdict.error or verdict.reason)
        report.warning("verifier", f"{text}; {rejected.label}, reference {rejected.reference[:60]!r}: {reason}")
    finally:
        tasks.close()


def _reference_as_answer(config: VerifierConfig, example: Example) -> Item:
    """The item has no prompt, so that no rule against copies of the prompt applies to the reference."""
    completion = f"The answer is \\boxed{{{example.reference}}}"
    return replace(verifier_item(example, completion, config.name, config.parameters, example.id), prompt="")


def _check_folder(config: TrainConfig, report: CheckReport) -> None:
    parent = next(folder for folder in (config.out, *config.out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    text = f"{config.out}, {format_bytes(free)} free"
    with report.catch_errors("folder"):
        check_free(config.out, "run")
    if holds_run(config.out):
        report.warning("folder", f"{text}; the folder holds a run: --resume goes on with it, --overwrite deletes it")
    else:
        report.ok("folder", text)


def _run_dry_step(config: TrainConfig, report: CheckReport) -> None:
    """Run one step of the training loop with few prompts and short completions."""
    with tempfile.TemporaryDirectory(prefix="vold-check-") as folder, report.catch_errors("a dry step"), silenced():
        small = config.model_copy(deep=True)
        small.out, small.steps, small.trackers = Path(folder) / "run", 1, []
        small.checkpoints.every, small.checkpoints.minutes = 0, 0.0
        small.data.skip_broken = bool(config.data.skip_broken)  # by default a row at fault is told, not masked
        small.rollout.prompts = min(config.rollout.prompts, DRY_PROMPTS)
        small.rollout.max_tokens = min(config.rollout.max_tokens, DRY_TOKENS)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        run_train(small, export=False)
        seconds = time.monotonic() - started
        (step,) = read_json_lines(small.out / "metrics.jsonl")
        rollouts = small.rollout.prompts * small.rollout.group
        missing = [int(step["missing/teacher"]), int(step["missing/verifier"])]
        loss = step.get("loss")
        text = (
            f"{rollouts} completions of up to {small.rollout.max_tokens} tokens: {step['time/step']:.1f} s, "
            f"{seconds:.1f} s with loading the models; loss {'none' if loss is None else f'{loss:.4g}'}, reward "
            f"{step.get('reward/mean') or 0:.2g}"
        )
        if torch.cuda.is_available():
            text += f", {format_bytes(torch.cuda.max_memory_allocated())} of GPU memory"
        rows = int(step["missing/rows"])
        if rows and loss is not None and max(missing) <= rows * small.rollout.group:  # no score of another row
            report.warning("a dry step", f"{text}; rows at fault, masked: {rows}; the warnings of vold.rows name them")
        elif loss is None or any(missing):
            reasons = "; ".join(step.get("missing/reasons", ())) or "look at the services' logs"
            said = f"{sum(missing)} scores are missing" if any(missing) else "all completions are missing"
            report.error("a dry step", f"{text}; {said}: {reasons}")
        else:
            report.ok("a dry step", text)
        for reason in step.get("sane/reasons", ()):
            report.warning("a dry step", reason)


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters)
