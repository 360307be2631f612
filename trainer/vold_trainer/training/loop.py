"""The loop of `vold train`: draw and score, learn, write down, until the steps are done or somebody says stop."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vold_trainer import tracing
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines
from vold_trainer.processes.ranks import Ranks
from vold_trainer.rollout.base import Engine
from vold_trainer.rollout.whole_weights import GatheredEngine
from vold_trainer.runs.folder import RunFolder, StopSignal, time_so_far, trim_after
from vold_trainer.runs.live import TRAIN, Dashboard
from vold_trainer.runs.saving import Saver
from vold_trainer.scoring.scorer import Scorer, StepScores
from vold_trainer.scoring.teachers import ONLY, TeacherRequirements
from vold_trainer.services.outages import InterruptedWaitError, Span
from vold_trainer.student.models import Student
from vold_trainer.student.traces import Trace
from vold_trainer.terminal import console
from vold_trainer.training.batches import Batches
from vold_trainer.training.diagnostics import Diagnostics
from vold_trainer.training.generation import RolloutGenerator
from vold_trainer.training.pipeline import Pipeline
from vold_trainer.training.token_log import Outcomes
from vold_trainer.training.update import PolicyUpdater


@dataclass
class Part:
    """What a process tells the others of its part of a step."""

    outcomes: Outcomes
    missing: Counter[str]
    generate_seconds: float
    wait_seconds: float


class Loop:
    """A run, step by step."""

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        engine: Engine,
        scorer: Scorer,
        ranks: Ranks,
        resume: bool,
        data: Mapping[str, int],
    ) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.scorer = scorer
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        ranks.check(config.rollout.prompts, "rollout.prompts")
        self.learner = PolicyUpdater(config, student, ranks)
        wrapped = self.learner.wrapped
        self.engine: Engine = GatheredEngine(engine, wrapped.module) if wrapped.even else engine
        self.drawing = RolloutGenerator(config, student, self.engine, scorer, ranks)
        self.saver = Saver(config, student, wrapped, ranks, data)
        about: dict[str, Any] = {
            "kind": "train",
            "objective": self.objective.name,
            "seed": config.seed,
            "steps": config.steps,
            "student": config.student.path,
            "processes": ranks.size,
            **self._shake_hands(),
        }
        self.diagnostics = Diagnostics(config, student, wrapped, scorer, ranks)
        if self.diagnostics.lacking:
            console.print(f"[dim]diagnostics: {self.diagnostics.lacking}", highlight=False)
        self.found = found = self.saver.begin(resume)
        if found is not None:
            ranks.together(lambda: self._same_teachers(about))
            if ranks.first:
                trim_after(config.out, found.step)
        self.first = self.done = found.step if found else 0
        state = found.state["loop"] if found else {}
        self.missing_in_a_row = int(state.get("missing_in_a_row", 0))
        self.missing_total = int(state.get("missing_total", 0))
        since = ranks.gather(time_so_far(config.out) if found else 0.0)[0]
        self.folder = RunFolder(
            config, about, self.accelerator, resumed=found is not None, first=self.first, since=since
        )

    def _shake_hands(self) -> dict[str, Any]:
        """Meet the teachers; who they are, for run.json."""
        asks = TeacherRequirements(self.objective.name, self.objective.needs, self.config.rollout.temperature)
        met = {}
        for teacher in self.ranks.together(lambda: self.scorer.meet_teachers(self.student, asks)):
            assert teacher.info is not None
            assert teacher.handshake is not None
            who = f"{teacher.name} ({teacher.info.identity.model})" if teacher.name else teacher.info.identity.model
            console.print(f"[dim]handshake with {who}: {teacher.handshake.describe()}", highlight=False)
            met[teacher.name] = teacher.about()
        self.ranks.same(met, "the processes met different teachers: their URLs must lead to the same one everywhere")
        if ONLY in met:
            return {"teacher": met[ONLY]}
        return {"teachers": met} if met else {}

    def _same_teachers(self, about: Mapping[str, Any]) -> None:
        """A resumed run asks the teachers that it began with, unless the config allows another."""
        file = self.config.out / "run.json"
        before = json.loads(file.read_text()) if file.is_file() else {}
        for name, teacher in self.scorer.teachers.items():
            was = before.get("teachers", {}).get(name) if name else before.get("teacher")
            now = about["teachers"][name] if name else about["teacher"]
            if was and was != now and not teacher.config.allow_identity_change:
                raise RunError(
                    f"the run began with teacher {was}, and {now} answers now. Start a new run with it, or set "
                    f"{teacher.key}.allow_identity_change=true"
                )

    def run(self, examples: Sequence[Example], traces: Sequence[Trace], *, keep: bool = True) -> Path:
        """keep: write the student at the end.

        Raises RunError where the run cannot go on, after a checkpoint of what was learned.
        """
        config = self.config
        if self.objective.needs.teacher:
            self.ranks.together(lambda: self.scorer.prepare([*examples, *(trace.example for trace in traces)]))
        batches = Batches(config, self.objective, self.drawing, examples, traces)
        self.pipeline = Pipeline(batches.begin, self.engine, ahead=config.rollout.ahead, steps=config.steps)
        label = f"{self.objective.name} on {config.data.label} prompts"
        self.student.model.train()
        with StopSignal() as stop, self._view(label) as live, closing(self.pipeline):
            self.scorer.outages.stop = lambda: stop.requested
            self._take_up(batches)
            try:
                for step in range(self.first, config.steps):
                    with tracing.span("step", step=step + 1):
                        figures = self._step(step)
                    spans = self.pipeline.sync(self.done)
                    live.update(self.done, **figures)
                    stopped = self.ranks.any(stop.requested)
                    if self.saver.due(self.done) or stopped:
                        spans += self._save()
                    self._spans(spans)
                    if stopped:
                        self._leave()
            except RunError as error:  # agreed upon: every process has one
                stopped = self.ranks.any(isinstance(error.__cause__ or error, InterruptedWaitError))
                self._save()
                if stopped:
                    self._leave()
                raise type(error)(
                    f"{error}. What the run had learned after step {self.done} is saved: once that is mended, the same "
                    "command goes on from there with --resume"
                ) from error
        if keep:
            self.saver.export()
        self.folder.close()
        return config.out / "model"

    def _view(self, label: str) -> Dashboard:
        """What the terminal of the first process shows."""
        history = read_json_lines(self.config.out / "metrics.jsonl") if self.first and self.ranks.first else []
        state = self.scorer.state
        return Dashboard(label, self.config.steps, TRAIN, console, done=self.first, history=history, state=state)

    def _take_up(self, batches: "Batches") -> None:
        """What a resumed run finds: the weights' age, and the batches that were drawn ahead."""
        if self.found is None:
            return
        self.engine.sync(self.first)
        folder = self.found.path
        for drawn in self.ranks.together(lambda: list(batches.kept(folder))):
            self.pipeline.put(drawn)

    def _save(self) -> list[Span]:
        started = time.monotonic()
        state = {"missing_in_a_row": self.missing_in_a_row, "missing_total": self.missing_total}
        self.saver.save(self.done, state, partial(self.pipeline.save, done=self.done, rank=self.ranks.rank))
        return [("checkpoint", started, time.monotonic())]

    def _leave(self) -> NoReturn:
        self.folder.close()
        raise SystemExit(143)

    def _step(self, step: int) -> dict[str, Any]:
        """One step, written to the run's folder; returns its figures."""
        started = time.monotonic()
        if self.drawing.rounds == 1:
            drawn = self.ranks.together(lambda: self.pipeline.take(step))
        else:  # which agrees round by round
            drawn = self.pipeline.take(step)
        due = drawn.version is not None and self.diagnostics.due(step, drawn.needs)
        measured = self.diagnostics.begin(drawn.learned, drawn.all.rollouts[0]) if due else None
        learning = time.monotonic()
        with tracing.span("update"):
            figures, log = self.learner.update(step, drawn.learned, drawn.needs, drawn.all.rollouts[0])
        self.done = step + 1
        if (step + 1) % self.config.samples_every == 0 or step == 0:
            self.folder.rollouts(log.samples(step + 1, self.student))
        ended = time.monotonic()
        health = self.diagnostics.figures(measured) if measured else {}
        beside = measured.spans if measured else []
        scores, waits, outages = drawn.found(), drawn.waits, self.scorer.outages.take_spells()
        optimised = between(learning, ended, waits)
        self._spans([*drawn.drawing, *scores.spans, *waits, *outages, *beside, *optimised])
        own = Part(Outcomes.of(drawn.all), scores.missing, seconds(drawn.drawing), seconds(waits))
        parts = self.ranks.gather(own)
        outcomes = Outcomes.joined([part.outcomes for part in parts])
        found = StepScores({}, sum((part.missing for part in parts), Counter()))
        metrics = {
            **(outcomes.figures() if drawn.version is not None else {}),
            **drawn.figures,
            **figures,
            **health,
            "missing/teacher": float(found.count_missing("teacher")),
            "missing/verifier": float(found.count_missing("verifier")),
            "staleness": float(drawn.staleness),
            "time/generate": max(part.generate_seconds for part in parts),
            "time/score_wait": max(part.wait_seconds for part in parts),
            "time/optimise": seconds(optimised),
            "time/step": ended - started,
            "tokens/per_second": sum(outcomes.lengths) / (ended - started),
        }
        self.folder.metrics(step + 1, metrics)
        self.ranks.together(lambda: self.saver.saw(metrics))
        self.ranks.together(lambda: self._mind_the_missing(found, len(outcomes.rewards)))
        return metrics

    def _spans(self, spans: Sequence[Span]) -> None:
        """Write down what every process did when."""
        self.folder.spans(self.done, self.ranks.gather(self.folder.since_start(spans)))

    def _mind_the_missing(self, found: StepScores, count: int) -> None:
        """Say what is missing, and stop the run where too much of it is, too often."""
        if not found.missing:
            self.missing_in_a_row = 0
            return
        self.missing_total += found.missing.total()
        console.print(f"[yellow]missing scores, masked: {dict(found.missing)}")
        share = max(found.count_missing("teacher"), found.count_missing("verifier")) / count
        self.missing_in_a_row = self.missing_in_a_row + 1 if share > self.config.missing.max_share else 0
        if self.missing_in_a_row >= self.config.missing.patience:
            raise RunError(
                f"{share:.0%} of the scores were missing for {self.missing_in_a_row} steps in a row "
                f"({dict(found.missing)}); missing.max_share is {self.config.missing.max_share:.0%}. Check the services"
            )


def seconds(spans: Sequence[Span]) -> float:
    """How long all of them were together."""
    return sum(end - start for _, start, end in spans)


def between(start: float, end: float, waits: Sequence[Span]) -> list[Span]:
    """The optimiser's spans from `start` to `end`: all but the waits in it."""
    edges = [start]
    for _, began, ended in sorted(waits, key=lambda span: span[1]):
        if start <= began and ended <= end:
            edges += [began, ended]
    edges.append(end)
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [("optimise", began, ended) for began, ended in pairs if ended > began]
