"""The checks of a `vold train` config, one topic after another; what one finds wrong does not stop the next."""

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from vold_client import AsyncTeacherClient, Completion, Item, Verdict, VerifierInfo

from vold_trainer.checking.findings import Findings
from vold_trainer.checking.memory import Memory, Model, available, estimate, size
from vold_trainer.config import TeacherConfig, TrainConfig, VerifierConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.files import read_json_lines
from vold_trainer.scoring.teachers import Teacher, TeacherRequirements, TeacherRouter, configured
from vold_trainer.scoring.twins import check_twins
from vold_trainer.services.local import Services, open_services, teacher_client, verifier_client
from vold_trainer.sources import load_examples
from vold_trainer.student.models import Student, load_student
from vold_trainer.tasks import ClientTasks
from vold_trainer.terminal import progress, quietly
from vold_trainer.training.train import run_train

LOOKED_AT = 2000
"""Prompts whose length is counted, at most."""
REFERENCES = 64
"""Rows whose reference is judged as its own answer."""
PATIENCE = 3.0
"""Seconds that a service has to say that it is ready: who checks asks about now, where a run waits for a start."""
PROBE_TOKENS = 256
DRY_TOKENS, DRY_PROMPTS = 64, 2


def run_check(config: TrainConfig, *, dry: bool = True) -> Findings:
    """Look at all that a run needs; nothing is written to its folder.

    dry: also run one small step, from drawing to the optimiser, in a folder that is dropped.
    """
    found = Findings()
    with progress("checking", 5) as live:
        examples = _data(config, found)
        live.update(1)
        student = _student(config, found, examples)
        live.update(2)
        _memory(config, found, student, examples)
        live.update(3)
        _services(config, found, student, examples)
        live.update(4)
        _folder(config, found)
        if dry and found.all_well:
            _dry_step(config, found)
        live.update(5)
    return found


def _data(config: TrainConfig, found: Findings) -> list[Example]:
    examples: list[Example] = []
    with found.looking_at("data"):
        examples = load_examples(config.data)
        per_step = config.rollout.prompts
        passes = config.steps * per_step / len(examples)
        found.well(
            "data",
            f"{len(examples):,} prompts from {config.data.source}; {config.steps} steps of {per_step} are "
            f"{passes:.2g} passes over them",
        )
        if len(examples) < per_step:
            found.note("data", f"a step takes {per_step} prompts, so some come twice in it: lower rollout.prompts")
        ids = Counter(example.id for example in examples)
        if twice := [name for name, count in ids.items() if count > 1]:
            found.note("data", f"{len(twice):,} ids stand on several rows, {twice[0]!r} first")
        if images := sum(bool(example.images) for example in examples):
            found.well("data", f"{images:,} prompts have images")
    return examples


def _student(config: TrainConfig, found: Findings, examples: Sequence[Example]) -> Student | None:
    student = None
    with found.looking_at("student"):
        student = load_student(config.student)
        learning = sum(value.numel() for value in student.model.parameters() if value.requires_grad)
        total = sum(value.numel() for value in student.model.parameters())
        if not learning:
            raise UsageError("student.freeze leaves nothing to learn: take a part out of it")
        found.well(
            "student",
            f"{type(student.model).__name__}, {_count(total)} parameters, {_count(learning)} of them learn, "
            f"{config.student.dtype}",
        )
        if config.student.dtype != "float32" and config.optim.lr < 1e-4:
            found.note(
                "student",
                f"optim.lr {config.optim.lr:g} in {config.student.dtype} weights: updates this small round away. Use "
                "student.dtype=float32",
            )
        lengths = sorted(_prompt_lengths(student, examples[:LOOKED_AT]))
        if lengths:
            longest = lengths[-1] + config.rollout.max_tokens
            limit = getattr(student.model.config.get_text_config(), "max_position_embeddings", None)
            text = (
                f"prompts have {lengths[0]} to {lengths[-1]} tokens, {lengths[len(lengths) // 2]} in the middle; with "
                f"rollout.max_tokens {config.rollout.max_tokens} at most {longest:,}"
            )
            if limit is not None and longest > limit:
                found.wrong("student", f"{text}, and it takes {limit:,}: lower rollout.max_tokens, or drop long rows")
            else:
                found.well("student", text)
    return student


def _prompt_lengths(student: Student, examples: Sequence[Example]) -> list[int]:
    return [
        len(ids) for start in range(0, len(examples), 64) for ids in student.prompt_ids(examples[start : start + 64])
    ]


def _memory(config: TrainConfig, found: Findings, student: Student | None, examples: Sequence[Example]) -> None:
    if student is None:
        return
    model = Model.of(student.model, student.model.config.get_text_config(), config.student.dtype)
    longest = max(_prompt_lengths(student, examples[:LOOKED_AT]), default=0) + config.rollout.max_tokens
    drawn = config.rollout.prompts * config.rollout.group
    needed = estimate(
        model,
        tokens=longest,
        micro=config.batch.micro,
        together=config.rollout.batch or drawn,
        checkpointing=config.student.checkpoint_activations,
    )
    room, where = available()
    text = f"about {size(needed.peak)} at most of {size(room)} ({where}): {_parts(needed)}"
    if needed.peak <= 0.9 * room:
        found.well("memory", text)
        return
    found.note("memory", f"{text}. {_smaller(config, needed)}")


def _parts(needed: Memory) -> str:
    return (
        f"weights {size(needed.weights)}, gradients {size(needed.gradients)}, optimizer {size(needed.moments)}, "
        f"activations {size(needed.activations)}, cache while drawing {size(needed.cache)}"
    )


def _smaller(config: TrainConfig, needed: Memory) -> str:
    """What would help most."""
    if needed.drawing > needed.learning:
        return "Lower rollout.batch: fewer sequences are then drawn together"
    if needed.activations > needed.weights + needed.gradients + needed.moments:
        if not config.student.checkpoint_activations:
            return "Set student.checkpoint_activations=true"
        return "Lower batch.micro" if config.batch.micro > 1 else "Lower rollout.max_tokens"
    return "Shard it over several devices, or let adapters learn in place of the weights"


def _services(config: TrainConfig, found: Findings, student: Student | None, examples: Sequence[Example]) -> None:
    teachers = configured(config)
    if teachers:
        with found.looking_at("teacher"):
            TeacherRouter(config).check(examples)
            check_twins(examples)
    for name, teacher in teachers.items():
        topic = f"teacher {name}" if name else "teacher"
        with found.looking_at(topic), open_services(teacher=teacher, patience=PATIENCE) as services:
            _teacher(config, name, teacher, services, topic, found, student, examples)
    if config.verifier is not None:
        with found.looking_at("verifier"), open_services(verifier=config.verifier, patience=PATIENCE) as services:
            _verifier(config.verifier, services, found, examples)


def _teacher(
    config: TrainConfig,
    name: str,
    teacher: TeacherConfig,
    services: Services,
    topic: str,
    found: Findings,
    student: Student | None,
    examples: Sequence[Example],
) -> None:
    tasks = ClientTasks()
    try:
        met = Teacher(name, teacher, tasks.run(_made(teacher, services)))
        info = tasks.run(met.client.info())
        offers = ", ".join(sorted(info.capabilities))
        found.well(
            topic,
            f"{info.identity.model} at {teacher.url}, weights {info.identity.weights_fingerprint[:12]}, backend "
            f"{info.backend}, {info.dtype}; offers {offers}",
        )
        if student is None:
            return
        asks = TeacherRequirements(config.objective.name, config.objective.needs, config.rollout.temperature)
        met.meet(info, tasks.run(met.client.tokenizer()), student, asks)
        assert met.handshake is not None
        found.well(topic, met.handshake.describe())
        shared = met.handshake.known_V.nonzero().flatten().tolist()
        longest = max(_prompt_lengths(student, examples[:LOOKED_AT]), default=1) + config.rollout.max_tokens
        if longest > info.max_sequence:
            found.wrong(
                topic,
                f"the longest prompt with its completion may have {longest:,} tokens, and it takes "
                f"{info.max_sequence:,}: lower rollout.max_tokens, or serve it with a larger --max-sequence",
            )
        count = min(PROBE_TOKENS, info.max_sequence - 1)
        ids = [shared[index % len(shared)] for index in range(count)]
        began = time.monotonic()
        tasks.run(met.client.score([[shared[0]]], [Completion(0, ids)], temperature=config.rollout.temperature))
        seconds = time.monotonic() - began
        drawn = config.rollout.prompts * config.rollout.group
        found.well(
            topic,
            f"scored a completion of {count} tokens in {seconds:.2g} s; a step asks for {drawn} completions of up to "
            f"{config.rollout.max_tokens}",
        )
    finally:
        tasks.run(met.client.aclose())
        tasks.close()


async def _made(teacher: TeacherConfig, services: Services) -> AsyncTeacherClient:
    return teacher_client(teacher, services)


def _verifier(config: VerifierConfig, services: Services, found: Findings, examples: Sequence[Example]) -> None:
    tasks = ClientTasks()

    async def ask(items: list[Item]) -> tuple[list[VerifierInfo], list[Verdict]]:
        async with verifier_client(config, services) as client:
            known = await client.list_verifiers()
            return known, await client.verify(items) if items else []

    used = Counter(str(example.meta.get("verifier", config.name)) for example in examples) or Counter([config.name])
    try:
        known, _ = tasks.run(ask([]))
        names = {one.name for one in known}
        if unknown := [name for name in used if name not in names]:
            row = next((e.id for e in examples if e.meta.get("verifier") == unknown[0]), None)
            where = f"row {row!r}, field 'verifier'" if row else "verifier.name"
            found.wrong("verifier", f"{where} is {unknown[0]!r}, and {config.url} has: {', '.join(sorted(names))}")
            return
        found.well("verifier", f"{config.url} judges by {', '.join(f'{n} ({c:,} rows)' for n, c in used.items())}")
        if not examples:
            return
        step = max(1, math.ceil(len(examples) / REFERENCES))
        asked = examples[::step]
        _, verdicts = tasks.run(ask([_own_reference(config, example) for example in asked]))
        accepted = sum(bool(verdict.correct) for verdict in verdicts)
        text = f"{accepted} of {len(asked)} references are accepted as their own answer in \\boxed{{}}"
        if accepted == len(asked):
            found.well("verifier", text)
            return
        refused, verdict = next((e, v) for e, v in zip(asked, verdicts, strict=True) if not v.correct)
        why = verdict.error or verdict.reason
        found.note("verifier", f"{text}; row {refused.id!r}, reference {refused.reference[:60]!r}: {why}")
    finally:
        tasks.close()


def _own_reference(config: VerifierConfig, example: Example) -> Item:
    return Item(
        verifier=str(example.meta.get("verifier", config.name)),
        completion=f"The answer is \\boxed{{{example.reference}}}",
        reference=example.reference,
        prompt="",
        parameters=dict(example.meta.get("parameters", config.parameters)),
        id=example.id,
    )


def _folder(config: TrainConfig, found: Findings) -> None:
    parent = next(folder for folder in (config.out, *config.out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    text = f"{config.out}, {size(free)} free"
    if (config.out / "metrics.jsonl").exists():
        found.note("folder", f"{text}; a run is there already: it is written over, or goes on with --resume")
    else:
        found.well("folder", text)


def _dry_step(config: TrainConfig, found: Findings) -> None:
    """One step with few prompts and short completions, by the very code of a run."""
    with tempfile.TemporaryDirectory(prefix="vold-check-") as folder, found.looking_at("a dry step"), quietly():
        small = config.model_copy(deep=True)
        small.out, small.steps, small.trackers = Path(folder) / "run", 1, []
        small.checkpoints.every = 0
        small.rollout.prompts = min(config.rollout.prompts, DRY_PROMPTS)
        small.rollout.max_tokens = min(config.rollout.max_tokens, DRY_TOKENS)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        run_train(small, keep=False)
        seconds = time.monotonic() - began
        (step,) = read_json_lines(small.out / "metrics.jsonl")
        rollouts = small.rollout.prompts * small.rollout.group
        missing = int(step["missing/teacher"] + step["missing/verifier"])
        loss = step.get("loss")
        text = (
            f"{rollouts} completions of up to {small.rollout.max_tokens} tokens: {step['time/step']:.1f} s, "
            f"{seconds:.1f} s with loading; loss {'none' if loss is None else f'{loss:.4g}'}, reward "
            f"{step.get('reward/mean') or 0:.2g}"
        )
        if torch.cuda.is_available():
            text += f", {size(torch.cuda.max_memory_allocated())} of GPU memory"
        if loss is None or missing:
            found.wrong("a dry step", f"{text}; {missing} scores are missing: look at the services' logs")
        else:
            found.well("a dry step", text)


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters)
