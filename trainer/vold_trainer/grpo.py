"""The second stage: GRPO, distillation, or both.

A step: draw P prompts, sample G completions of each and have them scored (drawing.py); then one or more optimiser
steps on all of them (learning.py). What is asked of whom, and what the loss is, the objective says.
"""

from functools import partial
from pathlib import Path

import torch

from vold_trainer import tracing
from vold_trainer.config import TrainConfig
from vold_trainer.data import load_examples
from vold_trainer.loop import Loop
from vold_trainer.models import Student, load_student
from vold_trainer.objectives import AnyObjective, Gkd
from vold_trainer.outages import Outages
from vold_trainer.rollout import make_engine
from vold_trainer.scoring import Scorer
from vold_trainer.services import open_services, teacher_client, verifier_client
from vold_trainer.sft import Trace, read_traces
from vold_trainer.teachers import ONLY, Routes, configured, make_teachers


def run_train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train, and write the student to `out/model`. Returns that folder.

    Raises RunError where the run cannot go on: a service that stays away, too many missing scores, another teacher.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    student = load_student(config.student)
    examples = load_examples(config.data)
    traces = _traces(config.objective, student)
    routes = Routes(config)
    teachers, verifier = configured(config), config.verifier
    if teachers:
        routes.check([*examples, *(trace.example for trace in traces)])
    with (
        tracing.exporting(config.out.name),
        open_services(teacher=teachers.get(ONLY), verifier=verifier, teachers=teachers) as services,
    ):
        scorer = Scorer(
            make_teachers=partial(
                make_teachers, teachers, lambda name, of: teacher_client(of, services, config.out.name, name)
            ),
            make_verifier=partial(verifier_client, verifier, services, config.out.name) if verifier else None,
            route=routes,
            verifier=verifier.name if verifier else "",
            parameters=verifier.parameters if verifier else None,
            temperature=config.rollout.temperature,
            outages=Outages(config.outage.wait, ended=services.ended),
        )
        engine = make_engine(config.rollout, student)
        try:
            return Loop(config, student, engine, scorer, resume).run(examples, traces)
        finally:
            engine.close()
            scorer.close()


def _traces(objective: AnyObjective, student: Student) -> list[Trace]:
    """The completions that an objective learns from beside the student's own."""
    if isinstance(objective, Gkd) and objective.needs.traces:
        return read_traces(Path(str(objective.traces)), student)
    return []
