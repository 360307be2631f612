"""The loop of `vold train`: generate, score, update, log, until the steps are done or a signal stops the run."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.markup import escape

from vold_trainer import tracing
from vold_trainer.config import REFERENCE, TrainConfig
from vold_trainer.config.resuming import SAMPLING
from vold_trainer.data import Example
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines
from vold_trainer.processes.ranks import Ranks
from vold_trainer.rollout.base import Engine, Rollout
from vold_trainer.rollout.whole_weights import GatheredEngine
from vold_trainer.runs.faults import FaultLog
from vold_trainer.runs.folder import RunFolder, StopSignal, elapsed_seconds, trim_after
from vold_trainer.runs.live import TRAIN_TABLES, Dashboard
from vold_trainer.runs.rescue import ended_run
from vold_trainer.runs.saving import Saver
from vold_trainer.runs.start import Start
from vold_trainer.scoring.pace import warn_of_slow_quotas
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.scores import StepScores
from vold_trainer.scoring.teachers import SINGLE_TEACHER, TeacherRequirements
from vold_trainer.services.outages import InterruptedWaitError, Span
from vold_trainer.student.lengths import check_prompts
from vold_trainer.student.models import Student
from vold_trainer.student.traces import Trace
from vold_trainer.terminal import console
from vold_trainer.training.alarms import TeacherAlarms
from vold_trainer.training.batches import BatchSource
from vold_trainer.training.broken_rows import count_rows, dummy_rollout
from vold_trainer.training.diagnostics import Diagnostics
from vold_trainer.training.generation import RolloutBatch, RolloutGenerator
from vold_trainer.training.mismatch import MismatchWatch
from vold_trainer.training.missing import MissingWatch
from vold_trainer.training.opening_line import opening_line
from vold_trainer.training.pipeline import Pipeline
from vold_trainer.training.plateau import PlateauSwitch
from vold_trainer.training.summary import StepSummary
from vold_trainer.training.token_log import CompletionStats, TokenLog
from vold_trainer.training.update import PolicyUpdater


class Loop:
    """A run, step by step."""

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        engine: Engine,
        scorer: Scorer,
        ranks: Ranks,
        start: Start,
        content: Mapping[str, str],
    ) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.scorer = scorer
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        ranks.require_one_each(config.rollout.prompts, "rollout.prompts")
        console.print(f"[dim]{escape(opening_line(config, self.accelerator))}", highlight=False, soft_wrap=True)
        self.updater = PolicyUpdater(config, student, ranks)
        prepared = self.updater.prepared
        self.engine: Engine = GatheredEngine(engine, prepared.module) if prepared.lock_step else engine
        self.generator = RolloutGenerator(config, student, self.engine, scorer, ranks)
        self.prepared = prepared
        self.saver = Saver(config, student, prepared, ranks, content)
        about: dict[str, Any] = {
            "kind": "train",
            "objective": self.objective.name,
            "seed": config.seed,
            "steps": config.steps,
            "student": config.student.path,
            "processes": ranks.size,
            **self._handshake(),
        }
        self.diagnostics = Diagnostics(config, student, prepared, scorer, ranks)
        if self.diagnostics.warning:
            console.print(f"[dim]diagnostics: {escape(self.diagnostics.warning)}", highlight=False)
        self.checkpoint = checkpoint = self.saver.restore(start)
        if checkpoint is not None:
            ranks.run_on_all(lambda: self._check_same_teachers(about))
            if ranks.is_main:
                trim_after(config.out, checkpoint.step)
        self.first_step = self.steps_done = checkpoint.step if checkpoint else 0
        state = checkpoint.state["loop"] if checkpoint else {}
        self.missing = MissingWatch(config.missing)
        self.missing.restore(state)
        self.alarms = TeacherAlarms(scorer.teachers)
        self.alarms.restore(state.get("sanity", {}))
        self.mismatch = MismatchWatch(config.rollout.max_mismatch)
        self.mismatch.restore(state.get("mismatch", {}))
        self.plateau = PlateauSwitch(self.objective)
        self.plateau.restore(state.get("plateau", {}))
        self._follow_plateau()
        self.fault_log = FaultLog()
        elapsed = ranks.gather(elapsed_seconds(config.out) if checkpoint else 0.0)[0]
        resumed = checkpoint is not None
        self.folder = RunFolder(
            config,
            about,
            self.accelerator,
            resumed=resumed,
            steps_done=self.first_step,
            elapsed=elapsed,
            history=self.saver.history,
        )

    def _handshake(self) -> dict[str, Any]:
        """Complete the handshakes with the teachers; returns their identities for run.json."""
        requirements = TeacherRequirements(self.objective.name, self.objective.needs, self.config.rollout.temperature)
        identities = {}
        for teacher in self.ranks.run_on_all(lambda: self.scorer.handshake(self.student, requirements)):
            assert teacher.info is not None
            model = teacher.info.identity.model
            key = "the reference" if teacher is self.scorer.reference else teacher.name
            label = f"{key} ({model})" if key else model
            met = f"handshake with {label}: {teacher.describe_handshake()}"  # tokens such as [/INST] among it
            console.print(f"[dim]{escape(met)}", highlight=False)
            identities[teacher.name] = teacher.identity_record()
        self.ranks.require_same(
            identities, "the processes met different teachers: their URLs must lead to the same one everywhere"
        )
        reference = {"reference": identities.pop(REFERENCE)} if REFERENCE in identities else {}
        if SINGLE_TEACHER in identities:
            return {"teacher": identities[SINGLE_TEACHER], **reference}
        return {**({"teachers": identities} if identities else {}), **reference}

    def _check_same_teachers(self, about: Mapping[str, Any]) -> None:
        """Raise RunError if a resumed run has other teachers than it began with, unless the config allows that."""
        file = self.config.out / "run.json"
        before: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # a power cut may have left a part of it
            before = json.loads(file.read_text())
        for teacher in self.scorer.scoring_models:
            section, _, name = teacher.key.partition(".")
            old, new = (each.get(section, {}) for each in (before, about))
            old, new = (old.get(name), new.get(name)) if name else (old, new)
            if old and old != new and not teacher.config.allow_identity_change:
                raise RunError(
                    f"the run began with {section.removesuffix('s')} {old}, and {new} answers now. Start a new "
                    f"run with it, or set {teacher.key}.allow_identity_change=true"
                )

    def run(self, examples: Sequence[Example], traces: Sequence[Trace], *, export: bool = True) -> Path:
        """Run the steps that are left. export: write the student at the end.

        Any error ends the run after its last whole step is saved; see `ended_run`.
        """
        config = self.config
        refused = self.generator.refuse if config.data.skip_broken else None
        self.ranks.run_on_all(lambda: check_prompts(self.student, examples, config.rollout.max_tokens, refused))
        if self.scorer.scoring_models:
            prompts = [*examples, *(trace.example for trace in traces)]
            self.ranks.run_on_all(lambda: self.scorer.prepare_prompts(prompts, refused))
        if self.ranks.is_main:
            warn_of_slow_quotas(self.scorer, config.rollout, examples)
        source = BatchSource(config, self.objective, self.generator, examples, traces)
        self.pipeline = Pipeline(source.start, self.engine, ahead=config.rollout.ahead, steps=config.steps)
        self.student.model.train()
        pictures = self.student.pictures
        with (
            pictures.within_steps(config.rollout.ahead),
            StopSignal() as stop,
            self._dashboard() as live,
            closing(self.pipeline),
        ):
            self.scorer.outages.stop_requested = lambda: stop.requested
            self._restore_batches(source)
            try:
                for step in range(self.first_step, config.steps):
                    with tracing.span("step", step=step + 1):
                        metrics = self._step(step)
                    spans = self.pipeline.sync(self.steps_done)
                    pictures.end_step()
                    live.update(self.steps_done, **metrics)
                    asked = self.ranks.gather((stop.requested, self.saver.is_due(self.steps_done)))
                    stopped = any(requested for requested, _ in asked)
                    if asked[0][1] or stopped:
                        spans += self._save()
                    self._write_spans(spans)
                    if stopped:
                        self._exit()
                if export:
                    self.saver.export()
            except Exception as error:
                interrupted = isinstance(error.__cause__ or error, InterruptedWaitError)
                stopped = self.ranks.any(interrupted) if self.ranks.all_have(error) else interrupted
                ended = ended_run(
                    error,
                    step=self.steps_done,
                    out=config.out,
                    prepared=self.prepared,
                    ranks=self.ranks,
                    save=self._save,
                )
                if stopped:
                    self._exit()
                raise ended from ended.__cause__
        self.folder.close()
        return config.out / "model"

    def _dashboard(self) -> Dashboard:
        """The terminal output of the main process."""
        resumed = self.first_step and self.ranks.is_main
        return Dashboard(
            f"{self.objective.name} on {self.config.data.label} prompts",
            self.config.steps,
            TRAIN_TABLES,
            console,
            done=self.first_step,
            history=read_json_lines(self.config.out / "metrics.jsonl") if resumed else [],
            service_states=self.scorer.service_states,
        )

    def _restore_batches(self, source: BatchSource) -> None:
        """If the run resumes, tell the engine the weights' version and restore the batches generated ahead."""
        if self.checkpoint is None:
            return
        self.engine.sync(self.first_step)
        drawn_otherwise = any(change.key in SAMPLING for change in self.saver.changes)
        if drawn_otherwise or "data.source" in self.saver.other_content:  # or for other rows, perhaps of the same ids
            return  # the steps ahead are generated again
        folder, processes = self.checkpoint.path, int(self.checkpoint.state["processes"])
        for batch in self.ranks.run_on_all(lambda: list(source.restore(folder, processes))):
            self.pipeline.restore(batch)

    def _save(self) -> list[Span]:
        started = time.monotonic()
        state = {
            **self.missing.state(),
            "sanity": self.alarms.state(),
            "mismatch": self.mismatch.state(),
            "plateau": self.plateau.state(),
        }
        save_batches = partial(self.pipeline.save, done=self.steps_done, rank=self.ranks.rank)
        if self.ranks.size > 1 and self.ranks.group is None:  # alone: the other processes' completions are gone
            self.saver.save(self.steps_done, state)
        else:
            self.saver.save(self.steps_done, state, save_batches)
        return [("checkpoint", started, time.monotonic())]

    def _exit(self) -> NoReturn:
        self.folder.close()
        raise SystemExit(143)

    def _take_batch(self, step: int) -> RolloutBatch:
        if self.generator.max_rounds > 1:  # the processes agree between rounds
            return self.pipeline.take(step)
        return self.ranks.run_on_all(lambda: self.pipeline.take(step))

    def _dummy(self, batch: RolloutBatch) -> Rollout | None:
        """A rollout for passes of a process that has none for them; None if no process has a rollout to train on."""
        parts = self.ranks.gather((len(batch.selected.rollouts), sorted(batch.faults)))
        if not any(count for count, _ in parts):
            return None
        faulty = {place for _, places in parts for place in places}
        others = (example for place, example in enumerate(batch.examples) if place not in faulty)
        return dummy_rollout(self.student, batch.selected.rollouts, others)

    def _step(self, step: int) -> dict[str, Any]:
        """Run a step and write it to the run's folder; returns its metrics."""
        started = time.monotonic()
        self.prepared.begin_step(step)
        batch = self._take_batch(step)
        dummy = self._dummy(batch)
        due = dummy is not None and batch.version is not None and self.diagnostics.due(step, batch.needs)
        measurement = self.diagnostics.begin(batch.selected, dummy) if due and dummy else None
        update_started = time.monotonic()
        with tracing.span("update"):
            if dummy is not None:
                update_metrics, log = self.updater.update(step, batch.selected, batch.needs, dummy)
                batch.add_faults(self.updater.faults)
            else:
                update_metrics, log = self.updater.skip(), TokenLog(batch.selected)
        self.steps_done = step + 1
        self.prepared.end_step()
        if (step + 1) % self.config.samples_every == 0 or step == 0:
            self.folder.write_rollouts(log.samples(step + 1, self.student))
        ended = time.monotonic()
        diagnostics, failure = {}, None
        try:
            diagnostics = self.diagnostics.metrics(measurement) if measurement else {}
        except Exception as error:  # the step is done, and its line in metrics.jsonl must not be lost
            failure = error
        diagnostic_spans = measurement.spans if measurement else []
        scores, waits, outages = batch.collect(), batch.waits, self.scorer.outages.take_spans()
        optimise = optimise_spans(update_started, ended, waits)
        self._write_spans([*batch.generate_spans, *scores.spans, *waits, *outages, *diagnostic_spans, *optimise])
        generate_seconds, wait_seconds = total_seconds(batch.generate_spans), total_seconds(waits)
        sanity = self.alarms.figures(log, on_policy=batch.version is not None)
        own = StepSummary(
            CompletionStats.of(batch.scored),
            scores.missing,
            generate_seconds,
            wait_seconds,
            scores.sentences,
            sanity,
            batch.absent,
            tuple({fault.key: fault for fault in scores.faults}.values()),
        )
        summary = StepSummary.joined(self.ranks.gather(own))
        missing = StepScores({}, summary.missing, list(summary.faults), sentences=summary.sentences)
        self.alarms.observe(step + 1, summary.sanity)
        self.mismatch.observe(step + 1, update_metrics.get("mismatch/abs"))
        if self.plateau.observe(update_metrics.get("teacher/k2"), next_step=step + 1 + self.config.rollout.ahead):
            self._follow_plateau()
        self.fault_log.add(missing.faults, step + 1)
        metrics = {
            **(summary.stats.metrics() if batch.version is not None else {}),
            **batch.metrics,
            **update_metrics,
            **diagnostics,
            "missing/teacher": float(missing.count_missing("teacher")),
            **self._missing_reference(missing),
            "missing/verifier": float(missing.count_missing("verifier")),
            "missing/rows": float(count_rows(missing.faults)),
            **({"missing/reasons": missing.sentences.lines(missing.missing)} if missing.missing else {}),
            **self.alarms.metrics(),
            "staleness": float(batch.staleness),
            "time/generate": summary.generate_seconds,
            "time/score_wait": summary.wait_seconds,
            "time/optimise": total_seconds(optimise),
            "time/step": ended - started,
            "tokens/per_second": sum(summary.stats.lengths) / (ended - started),
        }
        self.folder.write_metrics(step + 1, metrics)
        if dummy is not None:
            on_policy = batch.version is not None
            self.ranks.run_on_all(lambda: self.saver.record_metrics(metrics, complete=on_policy))
        if failure is not None:
            raise failure
        self.ranks.run_on_all(lambda: self.prepared.skipped.report(step + 1))
        self.ranks.run_on_all(lambda: self.missing.check(missing, len(summary.stats.rewards) + summary.absent))
        self.ranks.run_on_all(self.alarms.check)
        self.ranks.run_on_all(self.mismatch.check)
        return metrics

    def _follow_plateau(self) -> None:
        self.objective = self.generator.objective = self.updater.objective = self.plateau.objective

    def _missing_reference(self, scores: StepScores) -> dict[str, float]:
        """Empty if the reference is no service."""
        if self.scorer.reference is None:
            return {}
        return {"missing/reference": float(scores.count_missing("reference"))}

    def _write_spans(self, spans: Sequence[Span]) -> None:
        """Write the spans of all processes to the timeline."""
        self.folder.write_spans(self.steps_done, self.ranks.gather(self.folder.relative_to_start(spans)))


def total_seconds(spans: Sequence[Span]) -> float:
    return sum(end - start for _, start, end in spans)


def optimise_spans(start: float, end: float, waits: Sequence[Span]) -> list[Span]:
    """The optimiser's spans from `start` to `end`: the time outside the waits."""
    edges = [start]
    for _, wait_start, wait_end in sorted(waits, key=lambda span: span[1]):
        if start <= wait_start and wait_end <= end:
            edges += [wait_start, wait_end]
    edges.append(end)
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [("optimise", span_start, span_end) for span_start, span_end in pairs if span_end > span_start]
