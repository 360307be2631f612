"""The checks of what answers a run by URL: teachers, the reference and the verifier."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from vold_client import AsyncTeacherClient, Completion, Item, Verdict, VoldError

from vold_trainer.checking.findings import CheckReport
from vold_trainer.config import REFERENCE, ScoringModelConfig, TrainConfig, VerifierConfig
from vold_trainer.data import Example
from vold_trainer.objectives import Needs
from vold_trainer.scoring.pace import describe_slow_quota, teacher_tokens
from vold_trainer.scoring.teachers import Teacher, TeacherRequirements, TeacherRouter
from vold_trainer.scoring.twins import TeacherPrompts, check_twins
from vold_trainer.sentences import sentence
from vold_trainer.services.items import verifier_item, verifier_name, verifier_trials
from vold_trainer.services.local import Services, open_services, teacher_client, verifier_client
from vold_trainer.services.verifiers import MAX_FAULTS, Fault, find_faults
from vold_trainer.student.models import Student
from vold_trainer.tasks import ClientTasks

MAX_VERIFIED_REFERENCES = 64
"""How many references are verified as answers to themselves, about."""

READY_SECONDS = 3.0
"""How long a service may take to be ready. A run waits longer, because services may start with it."""

PROBE_TOKENS = 256


def check_services(
    config: TrainConfig,
    report: CheckReport,
    student: Student | None,
    examples: Sequence[Example],
    lengths: Sequence[int],
) -> None:
    """Check every service that the run uses. student: None if it cannot be loaded. lengths: of the measured prompts."""
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
