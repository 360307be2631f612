"""The second stage: GRPO, distillation, or both.

A step: draw P prompts, sample G completions of each; every completion goes to teacher and verifier as soon as it
ends, while the others are still being drawn; then one or more optimiser steps on all of them. What is asked of whom,
and what the loss is, the objective says.

Shapes: P prompts, G completions of a prompt, C = P * G, T completion positions.
"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vold_trainer import checkpoint, tracing
from vold_trainer.batching import make_batch, micro_batches
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example, PromptOrder, load_examples
from vold_trainer.errors import RunError, UsageError
from vold_trainer.models import CompletionScorer, Student, load_student
from vold_trainer.objectives import AnyObjective, Dapo, Gkd
from vold_trainer.optim import make_optimizer
from vold_trainer.rollout.hf import Rollout, generate
from vold_trainer.run import RunFolder, StopSignal, console, progress, trim_after
from vold_trainer.scored import Scored
from vold_trainer.scoring import RolloutScore, Scorer, Span, StepScores
from vold_trainer.services import open_services, teacher_client, verifier_client
from vold_trainer.sft import Trace, read_traces
from vold_trainer.teachers import ONLY, Asks, Routes, configured, make_teachers
from vold_trainer.token_log import TokenLog, outcome_figures
from vold_trainer.twins import check_twins

ROUND_STRIDE = 1 << 40
"""Between the seeds of the rounds of one step: farther apart than the seeds of any two steps."""


def run_train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train, and write the student to `out/model`. Returns that folder.

    Raises RunError where the run cannot go on: too many missing scores, or another teacher.
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
    if config.objective.needs.teacher:
        check_twins([*examples, *(trace.example for trace in traces)])
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
        )
        try:
            return _Trainer(config, student, scorer, resume).run(examples, traces)
        finally:
            scorer.close()


def _traces(objective: AnyObjective, student: Student) -> list[Trace]:
    """The completions that an objective learns from beside the student's own."""
    if isinstance(objective, Gkd) and objective.needs.traces:
        return read_traces(Path(str(objective.traces)), student)
    return []


@dataclass
class _Drawn:
    """A step's rollouts, right after they were scored. all: with those that nothing will be learned from."""

    learned: Scored
    all: Scored
    found: StepScores
    spans: list[Span]
    generate_seconds: float
    wait_seconds: float
    figures: dict[str, float]


class _Trainer:
    def __init__(self, config: TrainConfig, student: Student, scorer: Scorer, resume: bool) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.scorer = scorer
        self.accelerator = Accelerator(log_with=config.trackers or None, project_dir=str(config.out))
        if self.accelerator.num_processes > 1:
            raise UsageError("train runs in one process: start it without `accelerate launch`")
        optimizer, scheduler = make_optimizer(student.model, config.optim, config.steps)
        self.module, self.optimizer, self.scheduler = self.accelerator.prepare(
            CompletionScorer(student.model), optimizer, scheduler
        )
        about: dict[str, Any] = {
            "kind": "train",
            "objective": self.objective.name,
            "seed": config.seed,
            "steps": config.steps,
            "student": config.student.path,
            **self._shake_hands(),
        }
        self.first, found = 0, checkpoint.latest(config.out) if resume else None
        if found is not None:
            self._same_teachers(about)
            self.first = checkpoint.restore(found, student.model, self.optimizer, self.scheduler)
            trim_after(config.out, self.first)
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
        config = self.config
        per_step = config.rollout.prompts * self._rounds
        order = PromptOrder(len(examples), per_step, config.seed)
        given = PromptOrder(len(traces), config.rollout.prompts * config.rollout.group, config.seed)
        if self.objective.needs.teacher:
            self.scorer.prepare([*examples, *(trace.example for trace in traces)])
        label = f"{self.objective.name} on {config.data.modality} prompts"
        self.student.model.train()
        with StopSignal() as stop, progress(label, config.steps) as live:
            for step in range(self.first, config.steps):
                with tracing.span("step", step=step + 1):
                    if traces and not self._on_policy(step):
                        figures = self._step(step, [], [traces[index] for index in given.indices(step)])
                    else:
                        figures = self._step(step, [examples[index] for index in order.indices(step)])
                live.update(step, **figures)
                live.update(step + 1)
                done = step + 1
                due = config.save_every and done % config.save_every == 0 and done < config.steps
                if due or stop.requested:
                    checkpoint.save(config.out, done, self.student.model, self.optimizer, self.scheduler)
                if stop.requested:
                    self.folder.close()
                    raise SystemExit(143)
        self.folder.close()
        self.student.save(config.out / "model")
        return config.out / "model"

    @property
    def _rounds(self) -> int:
        return self.objective.rounds if isinstance(self.objective, Dapo) else 1

    def _on_policy(self, step: int) -> bool:
        """Whether the student writes this step's completions itself: a function of seed and step alone."""
        share = self.objective.student_share if isinstance(self.objective, Gkd) else 1.0
        return random.Random(f"{self.config.seed}:{step}").random() < share

    def _step(self, step: int, examples: Sequence[Example], traces: Sequence[Trace] = ()) -> dict[str, float | None]:
        """One step, written to the run's folder; returns the figures for the live view."""
        started = time.monotonic()
        self.scorer.needs = self.objective.needs_at(step)
        drawn = self._given(traces) if traces else self._draw(step, examples)
        scored_at = time.monotonic()
        with tracing.span("update"):
            figures = self._optimise(step, drawn.learned)
        ended = time.monotonic()
        self.folder.spans(step + 1, [*drawn.spans, ("optimise", scored_at, ended)])
        found = drawn.found
        metrics = {
            **(outcome_figures(drawn.all) if not traces else {}),
            **drawn.figures,
            **figures,
            "missing/teacher": float(found.count_missing("teacher")),
            "missing/verifier": float(found.count_missing("verifier")),
            "time/generate": drawn.generate_seconds,
            "time/score_wait": drawn.wait_seconds,
            "time/optimise": ended - scored_at,
            "time/step": ended - started,
        }
        self.folder.metrics(step + 1, metrics)
        self._mind_the_missing(found, len(drawn.all.rollouts))
        return {
            "reward": metrics.get("reward/mean"),
            "gap": metrics.get("teacher/gap"),
            "length": metrics.get("length/mean"),
        }

    def _draw(self, step: int, examples: Sequence[Example]) -> _Drawn:
        """Sample completions of the prompts and have them scored; further rounds, where the objective allows them,
        until there are enough groups to learn from.
        """
        wanted = self.config.rollout.prompts
        rollouts: list[Rollout] = []
        scores: list[RolloutScore] = []
        found, spans = StepScores({}), list[Span]()
        generating = waiting = 0.0
        rounds = 0
        while True:
            part = examples[rounds * wanted : (rounds + 1) * wanted]
            drawn, generated, answer, answered = self._round(part, self.config.seed * 1_000_003 + step, rounds)
            rounds += 1
            generating += generated[1] - generated[0]
            waiting += answered - generated[1]
            spans += [("generate", *generated), *answer.spans]
            rollouts += drawn
            scores += [answer.rows.get(rollout.row, RolloutScore()) for rollout in drawn]
            found.missing.update(answer.missing)
            scored = self._scored(rollouts, scores, self.config.rollout.group)
            if rounds == self._rounds or int(scored.informative.sum()) >= wanted:
                break
        if self._rounds == 1:
            return _Drawn(scored, scored, found, spans, generating, waiting, {})
        learned = self._informative(scored, wanted)
        dropped = (len(scored.rollouts) - len(learned.rollouts)) // scored.group
        figures = {"dapo/rounds": float(rounds), "dapo/dropped_groups": float(dropped)}
        return _Drawn(learned, scored, found, spans, generating, waiting, figures)

    def _round(
        self, examples: Sequence[Example], seed: int, number: int
    ) -> tuple[list[Rollout], tuple[float, float], StepScores, float]:
        """(rollouts, when they were drawn, their scores, when these were there)."""
        rollout, needs = self.config.rollout, self.scorer.needs
        started = time.monotonic()
        # Not current: what is asked of the services meanwhile is a part of the step beside it, not of generating.
        with tracing.span("generate", current=False):
            drawn = generate(
                self.student,
                examples,
                group=rollout.group,
                max_tokens=rollout.max_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                batch=rollout.batch,
                seed=seed + number * ROUND_STRIDE,
                logprobs=needs.rollout_logprobs,
                candidates=needs.candidates,
                on_finished=self.scorer.submit,
            )
        generated = time.monotonic()
        return drawn, (started, generated), self.scorer.collect(), time.monotonic()

    def _informative(self, scored: Scored, wanted: int) -> Scored:
        """The first groups that teach something; all of them where none does."""
        groups = scored.informative.nonzero().flatten().tolist()[:wanted] or list(range(wanted))
        rows = [group * scored.group + index for group in groups for index in range(scored.group)]
        return self._scored([scored.rollouts[row] for row in rows], [scored.scores[row] for row in rows], scored.group)

    def _given(self, traces: Sequence[Trace]) -> _Drawn:
        """Completions that somebody else wrote, scored by the teacher alone."""
        prompts = self.student.prompt_ids([trace.example for trace in traces])
        rollouts = [
            Rollout(row, trace.example, tuple(ids), trace.ids, self.student.tokenizer.decode(trace.ids), False)
            for row, (trace, ids) in enumerate(zip(traces, prompts, strict=True))
        ]
        started = time.monotonic()
        self.scorer.verify = False
        self.scorer.submit(rollouts)
        found = self.scorer.collect()
        self.scorer.verify = True
        scored = self._scored(rollouts, [found.rows.get(row, RolloutScore()) for row in range(len(rollouts))], 1)
        figures = {"objective/on_policy": 0.0}
        return _Drawn(scored, scored, found, found.spans, 0.0, time.monotonic() - started, figures)

    def _scored(self, rollouts: Sequence[Rollout], scores: Sequence[RolloutScore], group: int) -> Scored:
        return Scored.of(
            rollouts,
            scores,
            group,
            advantage_std=getattr(self.objective, "advantage_std", True),
            max_tokens=self.config.rollout.max_tokens,
            overlong=getattr(self.objective, "overlong", 0.0),
        )

    def _optimise(self, step: int, scored: Scored) -> dict[str, Any]:
        """Optimiser steps over all rollouts of the step; the figures of what was learned from."""
        config = self.config
        size = config.batch.size or len(scored.rollouts)
        several = size < len(scored.rollouts)
        order = list(range(len(scored.rollouts)))
        if several:
            order = torch.randperm(
                len(order), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            ).tolist()
        old = self._logprobs(scored.rollouts) if several else None
        log = TokenLog(scored)
        sums: dict[str, float] = {}
        norms = []
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            tokens = sum(len(scored.rollouts[index].ids) for index in chosen)
            for part in micro_batches([len(scored.rollouts[index].ids) for index in chosen], config.batch.micro):
                rows = [chosen[index] for index in part]
                share = (
                    sum(len(scored.rollouts[row].ids) for row in rows) / tokens
                    if self.objective.normalise == "token"
                    else len(rows) / len(chosen)
                )
                for name, value in self._learn(step, scored, rows, share, old, log).items():
                    sums[name] = sums.get(name, 0.0) + value * share * len(chosen) / len(order)
            norms.append(float(self.accelerator.clip_grad_norm_(self.module.parameters(), config.optim.max_grad_norm)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        lr = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if (step + 1) % config.samples_every == 0 or step == 0:
            self.folder.rollouts(log.samples(step + 1, self.student))
        return {**sums, **log.figures(), "grad_norm": sum(norms) / len(norms), "lr": lr}

    def _learn(
        self,
        step: int,
        scored: Scored,
        rows: list[int],
        share: float,
        old: Mapping[int, Tensor] | None,
        log: TokenLog,
    ) -> dict[str, float]:
        """Forward and backward of one micro-batch, weighted by its share of the optimiser step."""
        device, needs, rollout = self.accelerator.device, self.scorer.needs, self.config.rollout
        part = [scored.rollouts[row] for row in rows]
        batch = make_batch(self.student, [r.example for r in part], [r.ids for r in part], device=device)
        ids_NK, theirs_NK = scored.support(rows) if needs.top_k or needs.candidates else (None, None)
        own = self.module(
            batch.inputs,
            batch.predicts_BS,
            batch.ids_N,
            rollout.temperature,
            None if ids_NK is None else ids_NK.to(device),
        )
        outcome = self.objective(
            scored.inputs(
                rows,
                batch,
                own.logprobs_N,
                None if old is None else torch.cat([old[row] for row in rows]),
                needs,
                None if theirs_NK is None else (own.support_NK, theirs_NK),
                step=step,
                max_tokens=rollout.max_tokens,
            )
        )
        self.accelerator.backward(outcome.loss * share)
        log.add(rows, own.logprobs_N.detach().cpu(), own.entropy_N.cpu())
        return {"loss": outcome.loss.item(), **outcome.metrics}

    @torch.no_grad()
    def _logprobs(self, rollouts: list[Rollout]) -> dict[int, Tensor]:
        """The student's log-probabilities before any update, by row."""
        found: dict[int, Tensor] = {}
        for part in micro_batches([len(r.ids) for r in rollouts], self.config.batch.micro):
            chosen = [rollouts[row] for row in part]
            batch = make_batch(
                self.student, [r.example for r in chosen], [r.ids for r in chosen], device=self.accelerator.device
            )
            own = self.module(batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature)
            found.update(zip(part, own.logprobs_N.split([len(r.ids) for r in chosen]), strict=True))
        return found

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
