"""The loop of `vold train`: draw and score, learn, write down, until the steps are done or somebody says stop."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator

from vold_trainer import checkpoint, tracing
from vold_trainer.batches import Batches
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example
from vold_trainer.drawing import Drawing
from vold_trainer.errors import RunError, UsageError
from vold_trainer.learning import Learner
from vold_trainer.models import Student
from vold_trainer.outages import InterruptedWaitError, Span
from vold_trainer.pipeline import Pipeline
from vold_trainer.rollout.base import Engine
from vold_trainer.run import RunFolder, StopSignal, console, progress, trim_after
from vold_trainer.scoring import Scorer, StepScores
from vold_trainer.sft import Trace
from vold_trainer.teachers import ONLY, Asks
from vold_trainer.token_log import outcome_figures


class Loop:
    """A run, step by step."""

    def __init__(self, config: TrainConfig, student: Student, engine: Engine, scorer: Scorer, resume: bool) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.engine = engine
        self.scorer = scorer
        self.accelerator = Accelerator(log_with=config.trackers or None, project_dir=str(config.out))
        if self.accelerator.num_processes > 1:
            raise UsageError("train runs in one process: start it without `accelerate launch`")
        self.learner = Learner(config, student, self.accelerator)
        self.drawing = Drawing(config, student, engine, scorer)
        about: dict[str, Any] = {
            "kind": "train",
            "objective": self.objective.name,
            "seed": config.seed,
            "steps": config.steps,
            "student": config.student.path,
            **self._shake_hands(),
        }
        found = self.learner.restore() if resume else None
        if found is not None:
            self._same_teachers(about)
            trim_after(config.out, found)
        self.first = self.done = found or 0
        self.folder = RunFolder(config, about, self.accelerator, resumed=found is not None)
        self.missing_in_a_row = 0
        self.missing_total = 0

    def _shake_hands(self) -> dict[str, Any]:
        """Meet the teachers; who they are, for run.json."""
        asks = Asks(self.objective.name, self.objective.needs, self.config.rollout.temperature)
        met = {}
        for teacher in self.scorer.meet_teachers(self.student, asks):
            assert teacher.info is not None
            assert teacher.handshake is not None
            who = f"{teacher.name} ({teacher.info.identity.model})" if teacher.name else teacher.info.identity.model
            console.print(f"[dim]handshake with {who}: {teacher.handshake.describe()}", highlight=False)
            met[teacher.name] = teacher.about()
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

    def run(self, examples: Sequence[Example], traces: Sequence[Trace]) -> Path:
        """Raises RunError where the run cannot go on, after a checkpoint of what was learned."""
        config = self.config
        batches = Batches(config, self.objective, self.drawing, examples, traces)
        self.pipeline = Pipeline(batches.begin, self.engine, ahead=config.rollout.ahead, steps=config.steps)
        label = f"{self.objective.name} on {config.data.modality} prompts"
        self.student.model.train()
        with StopSignal() as stop, progress(label, config.steps) as live, closing(self.pipeline):
            self.scorer.outages.stop = lambda: stop.requested
            self._take_up(batches)
            try:
                for step in range(self.first, config.steps):
                    with tracing.span("step", step=step + 1):
                        figures = self._step(step)
                    spans = self.pipeline.sync(self.done)
                    live.update(step, **figures)
                    live.update(self.done)
                    due = config.save_every and self.done % config.save_every == 0 and self.done < config.steps
                    if due or stop.requested:
                        spans += self._save()
                    self.folder.spans(self.done, spans)
                    if stop.requested:
                        self._leave()
            except InterruptedWaitError:
                self._save()
                self._leave()
            except RunError as error:
                self._save()
                raise RunError(
                    f"{error}. What the run had learned after step {self.done} is saved: once that is mended, the same "
                    "command goes on from there with --resume"
                ) from error
        self.folder.close()
        self.student.save(config.out / "model")
        return config.out / "model"

    def _take_up(self, batches: "Batches") -> None:
        """What a resumed run finds: the weights' age, and the batches that were drawn ahead."""
        if not self.first:
            return
        self.engine.sync(self.first)
        folder = checkpoint.latest(self.config.out)
        assert folder is not None
        for drawn in batches.kept(folder):
            self.pipeline.put(drawn)

    def _save(self) -> list[Span]:
        started = time.monotonic()
        self.learner.save(self.done, partial(self.pipeline.save, done=self.done))
        return [("checkpoint", started, time.monotonic())]

    def _leave(self) -> NoReturn:
        self.folder.close()
        raise SystemExit(143)

    def _step(self, step: int) -> dict[str, float | None]:
        """One step, written to the run's folder; returns the figures for the live view."""
        started = time.monotonic()
        drawn = self.pipeline.take(step)
        learning = time.monotonic()
        with tracing.span("update"):
            figures, log = self.learner.update(step, drawn.learned, drawn.needs)
        self.done = step + 1
        if (step + 1) % self.config.samples_every == 0 or step == 0:
            self.folder.rollouts(log.samples(step + 1, self.student))
        ended = time.monotonic()
        found, waits, outages = drawn.found(), drawn.waits, self.scorer.outages.take_spells()
        optimised = between(learning, ended, waits)
        self.folder.spans(step + 1, [*drawn.drawing, *found.spans, *waits, *outages, *optimised])
        metrics = {
            **(outcome_figures(drawn.all) if drawn.version is not None else {}),
            **drawn.figures,
            **figures,
            "missing/teacher": float(found.count_missing("teacher")),
            "missing/verifier": float(found.count_missing("verifier")),
            "staleness": float(drawn.staleness),
            "time/generate": seconds(drawn.drawing),
            "time/score_wait": seconds(waits),
            "time/optimise": seconds(optimised),
            "time/step": ended - started,
        }
        self.folder.metrics(step + 1, metrics)
        self._mind_the_missing(found, len(drawn.all.rollouts))
        return {
            "reward": metrics.get("reward/mean"),
            "gap": metrics.get("teacher/gap"),
            "length": metrics.get("length/mean"),
        }

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
