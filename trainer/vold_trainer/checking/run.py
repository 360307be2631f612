"""The checks of a `vold train` config, topic by topic. An error in one topic does not stop the next check."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from vold_trainer.checking.findings import CheckReport
from vold_trainer.checking.memory import MemoryEstimate, ModelSize, available_memory, estimate_memory, format_bytes
from vold_trainer.checking.services import READY_SECONDS, check_services
from vold_trainer.config import OF_TEACHER, TokenConfig, TrainConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import RowFault
from vold_trainer.files import read_json_lines
from vold_trainer.lock import check_free
from vold_trainer.processes.optim import require_trainable_parameters
from vold_trainer.processes.rounding import rounding_warning
from vold_trainer.runs.start import holds_run
from vold_trainer.scoring.teacher_tokens import tokens_of_teachers
from vold_trainer.services.local import open_services
from vold_trainer.sources import load_examples
from vold_trainer.sources.check import check_student, check_traces
from vold_trainer.student.added_tokens import describe_tokens
from vold_trainer.student.lengths import REMEDY, describe_long, find_long, known_lengths, measure
from vold_trainer.student.models import Student, load_student
from vold_trainer.terminal import progress, silenced
from vold_trainer.training.train import run_train

MAX_MEASURED_IMAGES = 2000
"""How many prompts with images are processed to measure their lengths, at most."""
DRY_TOKENS, DRY_PROMPTS = 64, 2
FAR_GAP = 3.0
"""Nats a token. In the pocket world runs that began at a gap of -0.6 learned, and those at -4 and below collapsed."""


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
        check_services(config, report, student, examples, lengths)
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
        _check_gap(step.get("teacher/gap"), report)


def _check_gap(gap: float | None, report: CheckReport) -> None:
    """gap: the mean of log pi_T - log pi_theta over the tokens of the dry step; None without a teacher."""
    if gap is None or gap > -FAR_GAP:
        return
    report.warning(
        "teacher",
        f"the student's tokens are {-gap:.1f} nats a token less likely to the teacher than to the student: "
        "so far apart (teacher/gap), the teacher's term pushes down whatever the student writes, and completions may "
        "collapse: train the student on this teacher's traces first (vold traces, vold sft), or choose the teacher of "
        "its traces",
    )


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters)
