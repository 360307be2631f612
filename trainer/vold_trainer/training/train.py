"""The second stage: GRPO, distillation, or both.

A step: draw P prompts, sample G completions of each and have them scored (drawing.py); then one or more optimiser
steps on all of them (learning.py). What is asked of whom, and what the loss is, the objective says.
"""

from functools import partial
from pathlib import Path

import torch

from vold_trainer import tracing
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example
from vold_trainer.objectives import AnyObjective, Gkd
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.rollout.engines import make_engine
from vold_trainer.runs import trackers
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.teachers import ONLY, TeacherRouter, configured, make_teachers
from vold_trainer.scoring.twins import check_twins
from vold_trainer.services.local import teacher_client, verifier_client
from vold_trainer.services.outages import Outages
from vold_trainer.services.shared import shared_services
from vold_trainer.sources import load_examples
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.traces import Trace, read_traces
from vold_trainer.training.loop import Loop


def run_train(config: TrainConfig, *, resume: bool = False, keep: bool = True) -> Path:
    """Train, and write the student to `out/model` if it is to be kept. Returns that folder.

    Raises RunError where the run cannot go on: a service that stays away, too many missing scores, another teacher.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers.check_installed(config.trackers)
    ranks = Ranks(make_accelerator(log_with=config.trackers or None, project_dir=str(config.out)))
    student, examples, traces = ranks.together(lambda: _prepared(config))
    teachers, verifier = configured(config), config.verifier
    data = {"prompts": len(examples), "a step": config.rollout.prompts, "traces": len(traces)}
    with (
        tracing.exporting(config.out.name),
        shared_services(ranks, teacher=teachers.get(ONLY), verifier=verifier, teachers=teachers) as services,
    ):
        scorer = Scorer(
            make_teachers=partial(
                make_teachers, teachers, lambda name, of: teacher_client(of, services, config.out.name, name)
            ),
            make_verifier=partial(verifier_client, verifier, services, config.out.name) if verifier else None,
            route=TeacherRouter(config),
            verifier=verifier.name if verifier else "",
            parameters=verifier.parameters if verifier else None,
            temperature=config.rollout.temperature,
            outages=Outages(config.outage.wait, ended=services.ended),
        )
        engine = make_engine(config.rollout, student)
        try:
            return Loop(config, student, engine, scorer, ranks, resume, data).run(examples, traces, keep=keep)
        finally:
            engine.close()
            scorer.close()


def _prepared(config: TrainConfig) -> tuple[Student, list[Example], list[Trace]]:
    """The student, the prompts, and the completions that come with them, where a teacher is there for each."""
    student = load_student(config.student)
    examples = load_examples(config.data)
    traces = _traces(config.objective, student)
    if configured(config):
        TeacherRouter(config).check([*examples, *(trace.example for trace in traces)])
        check_twins([*examples, *(trace.example for trace in traces)])
    return student, examples, traces


def _traces(objective: AnyObjective, student: Student) -> list[Trace]:
    """The completions that an objective learns from beside the student's own."""
    if isinstance(objective, Gkd) and objective.needs.traces:
        return read_traces(Path(str(objective.traces)), student)
    return []
