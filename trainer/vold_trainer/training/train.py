"""The second stage: GRPO, distillation, or both.

A step takes P prompts, generates G completions of each and has them scored (generation.py), then makes one or more
optimiser steps on all of them (update.py). The objective determines the requests to the services and the loss.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from vold_trainer import tracing
from vold_trainer.config import TokenConfig, TrainConfig
from vold_trainer.data import Example
from vold_trainer.data.digest import digest
from vold_trainer.lock import holds_out
from vold_trainer.objectives import AnyObjective, Gkd
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.rollout.engines import check_images, make_engine
from vold_trainer.runs import trackers
from vold_trainer.runs.start import Start
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.teacher_tokens import tokens_of_teachers
from vold_trainer.scoring.teachers import TeacherRouter, make_teachers
from vold_trainer.scoring.twins import check_twins
from vold_trainer.services.local import teacher_client, verifier_client
from vold_trainer.services.opening import Opened
from vold_trainer.services.outages import Outages
from vold_trainer.services.shared import shared_opening
from vold_trainer.sources.check import check_files
from vold_trainer.student.added_tokens import with_tokens
from vold_trainer.student.fingerprint import fingerprint
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.traces import Trace, read_traces
from vold_trainer.training.loop import Loop
from vold_trainer.training.prompts import limited_prompts


@holds_out("run")
def run_train(
    config: TrainConfig,
    *,
    resume: bool = False,
    step: str = "last",
    overwrite: bool = False,
    export: bool = True,
    opened: Opened | None = None,
) -> Path:
    """Train, and write the student to `out/model` if `export`. Returns that folder.

    resume: go on from the checkpoint `step` ("last", "best", a number) if there is one. overwrite: delete the run that
    is in `out`. opened: the rows and the services, if this process has opened them.

    Raises RunError if the run cannot go on: a service stays away, too many scores are missing, the teacher changed.
    """
    start = Start(resume, step, overwrite)
    start.check(config.out, config.student.path)
    check_files(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers.check_installed(config.trackers)
    ranks = Ranks(make_accelerator(log_with=config.trackers or None, project_dir=str(config.out)))
    teachers, verifier = config.used_scoring_models, config.verifier
    with tracing.exporting(config.out.name), shared_opening(ranks, config, opened) as shared:
        services, (examples,) = shared.services, shared.sets
        offered = ranks.run_on_all(partial(tokens_of_teachers, config, services) if ranks.is_main else lambda: None)
        offered = ranks.gather(offered)[0]
        student, traces = ranks.run_on_all(lambda: _load(config, examples, offered))
        config = with_tokens(config, student.added_tokens)
        examples = limited_prompts(config.data, student, examples, ranks)
        content = {"student.path": fingerprint(student), "data.source": digest((example, ()) for example in examples)}
        if config.copies_start:
            content["reference"] = fingerprint(student, trained=True)
        if traces:
            content["objective.traces"] = digest((trace.example, trace.ids) for trace in traces)
        outages = Outages(config.outage.wait, why_ended=services.why_ended)
        scorer = Scorer(
            make_teachers=partial(
                make_teachers,
                teachers,
                lambda name, teacher: teacher_client(teacher, services, config.out.name, name, outages),
            ),
            make_verifier=partial(verifier_client, verifier, services, config.out.name, outages) if verifier else None,
            route=TeacherRouter(config),
            verifier_name=verifier.name if verifier else "",
            verifier_parameters=verifier.parameters if verifier else None,
            zero_on_limit=verifier is not None and verifier.on_limit == "zero",
            temperature=config.rollout.temperature,
            outages=outages,
            stop_at_faults=config.data.skip_broken is False,
        )
        engine = make_engine(config.rollout, student)
        try:
            loop = Loop(config, student, engine, scorer, ranks, start, content)
            model = loop.run(examples, traces, export=export)
            ranks.close()
            return model
        finally:
            engine.close()
            scorer.close()


def _load(
    config: TrainConfig, examples: Sequence[Example], offered: Sequence[TokenConfig] | None
) -> tuple[Student, list[Trace]]:
    """The student and the traces, after a check that each row has a teacher that can read it. offered: the added tokens
    of the teachers.
    """
    router = TeacherRouter(config)
    if config.used_teachers:
        router.check(examples)
    if config.used_scoring_models:
        check_twins(examples)
    student = load_student(config.student, offered)
    check_images(config.rollout, student, examples)
    traces = _load_traces(config.objective, student, skip_broken=bool(config.data.skip_broken))
    if config.used_teachers:
        router.check([trace.example for trace in traces])
    if config.used_scoring_models:
        check_twins([trace.example for trace in traces])
    return student, traces


def _load_traces(objective: AnyObjective, student: Student, *, skip_broken: bool) -> list[Trace]:
    """The completions that an objective trains on beside the student's own."""
    if isinstance(objective, Gkd) and objective.needs.traces:
        return read_traces(Path(str(objective.traces)), student, skip_broken=skip_broken)
    return []
