"""The second stage: GRPO, distillation, or both, on text-only prompts.

A step: draw P prompts, sample G completions of each; every completion goes to teacher and verifier as soon as it
ends, while the others are still being drawn; then one or more optimiser steps on all of them.

Shapes: P prompts, G completions of a prompt, C = P * G, T completion positions.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from vold_trainer import checkpoint, tracing
from vold_trainer.advantages import group_advantages
from vold_trainer.batching import make_batch, micro_batches
from vold_trainer.config import ObjectiveConfig, TrainConfig
from vold_trainer.data import Example, PromptOrder, load_examples
from vold_trainer.errors import RunError, UsageError
from vold_trainer.handshake import compare, teacher_vocabulary, vocabulary
from vold_trainer.models import CompletionScorer, Student, load_student
from vold_trainer.objectives import Grpo, Objective, Opd, Rollouts, Vold
from vold_trainer.optim import make_optimizer
from vold_trainer.rollout.hf import Rollout, generate
from vold_trainer.run import RunFolder, StopSignal, console, progress, trim_after
from vold_trainer.scoring import RolloutScore, Scorer, Span, StepScores
from vold_trainer.services import open_services, teacher_client, verifier_client

DECILES = 10


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a config names."""
    clip: dict[str, Any] = {
        "eps_low": config.eps_low,
        "eps_high": config.eps_high,
        "normalise": config.normalise,
    }
    if config.name == "grpo":
        return Grpo(**clip)
    if config.name == "opd":
        return Opd(**clip)
    return Vold(beta=config.beta, masked=config.masked, **clip)


def run_train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train, and write the student to `out/model`. Returns that folder.

    Raises RunError where the run cannot go on: too many missing scores, or another teacher.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    objective = make_objective(config.objective)
    student = load_student(config.student)
    examples = load_examples(config.data)
    teacher = config.teacher if objective.needs_teacher else None
    verifier = config.verifier
    with tracing.exporting(config.out.name), open_services(teacher=teacher, verifier=verifier) as services:
        scorer = Scorer(
            make_teacher=partial(teacher_client, teacher, services, config.out.name) if teacher else None,
            make_verifier=partial(verifier_client, verifier, services, config.out.name) if verifier else None,
            verifier=verifier.name if verifier else "",
            parameters=verifier.parameters if verifier else None,
            temperature=config.rollout.temperature,
            allow_identity_change=teacher is not None and teacher.allow_identity_change,
        )
        try:
            return _Trainer(config, objective, student, scorer, resume).run(examples)
        finally:
            scorer.close()


@dataclass
class _Scored:
    """A step's rollouts and what is known of them, as tensors on the CPU."""

    rollouts: list[Rollout]
    scores: list[RolloutScore]
    rewards_C: Tensor
    advantages_C: Tensor
    correct_C: Tensor
    rewarded_C: Tensor


class _Trainer:
    def __init__(
        self, config: TrainConfig, objective: Objective, student: Student, scorer: Scorer, resume: bool
    ) -> None:
        self.config = config
        self.objective = objective
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
            "objective": config.objective.name,
            "seed": config.seed,
            "steps": config.steps,
            "student": config.student.path,
        }
        if objective.needs_teacher:
            about["teacher"] = self._shake_hands()
        self.first, found = 0, checkpoint.latest(config.out) if resume else None
        if found is not None:
            self._same_teacher(about.get("teacher"))
            self.first = checkpoint.restore(found, student.model, self.optimizer, self.scheduler)
            trim_after(config.out, self.first)
        self.folder = RunFolder(config, about, self.accelerator, resumed=found is not None)
        self.missing_in_a_row = 0
        self.missing_total = 0

    def _shake_hands(self) -> dict[str, str]:
        assert self.config.teacher is not None
        info, tokenizer_file = self.scorer.meet_teacher()
        self.scorer.handshake = compare(
            vocabulary(self.student.tokenizer),
            teacher_vocabulary(tokenizer_file.tokenizer_json),
            min_shared=self.config.teacher.min_shared,
            size=self.student.vocab_size,
        )
        console.print(f"[dim]handshake with {info.identity.model}: {self.scorer.handshake.describe()}")
        return {
            "model": info.identity.model,
            "revision": info.identity.revision,
            "weights_fingerprint": info.identity.weights_fingerprint,
            "tokenizer_fingerprint": info.identity.tokenizer_fingerprint,
        }

    def _same_teacher(self, now: dict[str, str] | None) -> None:
        """A resumed run asks the teacher that it began with, unless the config allows another."""
        file = self.config.out / "run.json"
        before = json.loads(file.read_text()).get("teacher") if file.is_file() else None
        allowed = self.config.teacher is not None and self.config.teacher.allow_identity_change
        if before and now and before != now and not allowed:
            raise RunError(
                f"the run began with teacher {before}, and {now} answers now. Start a new run with it, or set "
                "teacher.allow_identity_change=true"
            )

    def run(self, examples: Sequence[Example]) -> Path:
        config = self.config
        order = PromptOrder(len(examples), config.rollout.prompts, config.seed)
        label = f"{config.objective.name} on {config.data.modality} prompts"
        self.student.model.train()
        with StopSignal() as stop, progress(label, config.steps) as live:
            for step in range(self.first, config.steps):
                with tracing.span("step", step=step + 1):
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

    def _step(self, step: int, examples: Sequence[Example]) -> dict[str, float | None]:
        """One step, written to the run's folder; returns the figures for the live view."""
        config = self.config
        started = time.monotonic()
        # Not current: what is asked of the services meanwhile is a part of the step beside it, not of generating.
        with tracing.span("generate", current=False):
            rollouts = generate(
                self.student,
                examples,
                group=config.rollout.group,
                max_tokens=config.rollout.max_tokens,
                temperature=config.rollout.temperature,
                top_p=config.rollout.top_p,
                batch=config.rollout.batch,
                seed=config.seed * 1_000_003 + step,
                on_finished=self.scorer.submit,
            )
        generated = time.monotonic()
        found = self.scorer.collect()
        scored_at = time.monotonic()
        scored = self._as_tensors(rollouts, found)
        with tracing.span("update"):
            figures = self._optimise(step, scored)
        ended = time.monotonic()
        spans: list[Span] = [("generate", started, generated), *found.spans, ("optimise", scored_at, ended)]
        self.folder.spans(step + 1, spans)
        metrics = {
            **_outcome_figures(scored, config.rollout.group),
            **figures,
            "missing/teacher": float(found.count_missing("teacher")),
            "missing/verifier": float(found.count_missing("verifier")),
            "time/generate": generated - started,
            "time/score_wait": scored_at - generated,
            "time/optimise": ended - scored_at,
            "time/step": ended - started,
        }
        self.folder.metrics(step + 1, metrics)
        self._mind_the_missing(found, len(rollouts))
        return {"reward": metrics["reward/mean"], "gap": metrics.get("teacher/gap"), "length": metrics["length/mean"]}

    def _as_tensors(self, rollouts: list[Rollout], found: StepScores) -> _Scored:
        scores = [found.rows.get(rollout.row, RolloutScore()) for rollout in rollouts]
        rewards_C = torch.tensor([np.nan if s.reward is None else s.reward for s in scores], dtype=torch.float32)
        advantages_PG = group_advantages(
            rewards_C.view(-1, self.config.rollout.group), divide_by_std=self.config.objective.advantage_std
        )
        correct_C = torch.tensor([bool(score.correct) for score in scores])
        return _Scored(rollouts, scores, rewards_C, advantages_PG.flatten(), correct_C, ~rewards_C.isnan())

    def _optimise(self, step: int, scored: _Scored) -> dict[str, Any]:
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
        log = _TokenLog(scored)
        sums: dict[str, float] = {}
        norms = []
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            tokens = sum(len(scored.rollouts[index].ids) for index in chosen)
            for part in micro_batches([len(scored.rollouts[index].ids) for index in chosen], config.batch.micro):
                rows = [chosen[index] for index in part]
                share = (
                    len(rows) / len(chosen)
                    if config.objective.normalise == "sequence"
                    else sum(len(scored.rollouts[row].ids) for row in rows) / tokens
                )
                for name, value in self._learn(scored, rows, share, old, log).items():
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
        self, scored: _Scored, rows: list[int], share: float, old: Mapping[int, Tensor] | None, log: "_TokenLog"
    ) -> dict[str, float]:
        """Forward and backward of one micro-batch, weighted by its share of the optimiser step."""
        device = self.accelerator.device
        part = [scored.rollouts[row] for row in rows]
        batch = make_batch(self.student, [r.example for r in part], [r.ids for r in part], device=device)
        logprobs_N, entropy_N = self.module(
            batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature
        )
        logprobs_CT = batch.rectangle(logprobs_N)
        old_CT = logprobs_CT.detach()
        if old is not None:
            old_CT = batch.rectangle(torch.cat([old[row] for row in rows]).to(device))
        teacher_CT, known_CT = None, None
        if self.objective.needs_teacher:
            teacher_N = torch.cat([_teacher_row(scored.scores[row], scored.rollouts[row]) for row in rows]).to(device)
            known_CT = batch.rectangle(teacher_N, float("nan")).isfinite()
            teacher_CT = batch.rectangle(teacher_N)
        index = torch.tensor(rows)
        outcome = self.objective(
            Rollouts(
                logprobs_CT=logprobs_CT,
                old_logprobs_CT=old_CT,
                mask_CT=batch.mask_BT,
                advantages_C=scored.advantages_C[index].to(device),
                rewarded_C=scored.rewarded_C[index].to(device),
                correct_C=scored.correct_C[index].to(device),
                teacher_logprobs_CT=teacher_CT,
                teacher_mask_CT=known_CT,
            )
        )
        self.accelerator.backward(outcome.loss * share)
        log.add(rows, logprobs_N.detach().cpu(), entropy_N.cpu())
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
            logprobs_N, _ = self.module(batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature)
            found.update(zip(part, logprobs_N.split([len(r.ids) for r in chosen]), strict=True))
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


def _teacher_row(score: RolloutScore, rollout: Rollout) -> Tensor:
    """The teacher's log-probabilities of a rollout, NaN where they are missing or masked."""
    if score.teacher_logprobs is None:
        return torch.full((len(rollout.ids),), float("nan"))
    return torch.from_numpy(score.teacher_logprobs)


def _outcome_figures(scored: _Scored, group: int) -> dict[str, float | None]:
    rewards = scored.rewards_C[scored.rewarded_C]
    groups_PG = scored.correct_C.view(-1, group)
    lengths = torch.tensor([float(len(rollout.ids)) for rollout in scored.rollouts])
    return {
        "reward/mean": rewards.mean().item() if len(rewards) else None,
        "reward/std": rewards.std().item() if len(rewards) > 1 else None,
        "groups/all_correct": groups_PG.all(-1).float().mean().item(),
        "groups/all_wrong": (~groups_PG.any(-1)).float().mean().item(),
        "length/mean": lengths.mean().item(),
        "length/truncated": float(np.mean([rollout.truncated for rollout in scored.rollouts])),
    }


class _TokenLog:
    """The student's side of every token of a step, for the figures and for the samples kept."""

    def __init__(self, scored: _Scored) -> None:
        self.scored = scored
        self.logprobs: dict[int, Tensor] = {}
        self.entropies: list[Tensor] = []

    def add(self, rows: list[int], logprobs_N: Tensor, entropy_N: Tensor) -> None:
        lengths = [len(self.scored.rollouts[row].ids) for row in rows]
        self.logprobs.update(zip(rows, logprobs_N.split(lengths), strict=True))
        self.entropies.append(entropy_N)

    def figures(self) -> dict[str, Any]:
        """Entropy, and where there is a teacher, k2 and the gap log pi_T - log pi_theta: all, by outcome, by place."""
        figures: dict[str, Any] = {"student/entropy": torch.cat(self.entropies).mean().item()}
        gaps: dict[bool, list[Tensor]] = {True: [], False: []}
        deciles: list[list[float]] = [[] for _ in range(DECILES)]
        masked = 0
        for row, own in self.logprobs.items():
            score = self.scored.scores[row]
            if score.teacher_logprobs is None:
                continue
            gap = torch.from_numpy(score.teacher_logprobs) - own
            known = gap.isfinite()
            masked += int((~known).sum())
            gaps[bool(score.correct)].append(gap[known])
            for place in known.nonzero().flatten().tolist():
                deciles[place * DECILES // len(gap)].append(float(gap[place]))
        every = [gap for part in gaps.values() for gap in part]
        if not every:
            return figures
        for name, part in (("", every), ("_correct", gaps[True]), ("_wrong", gaps[False])):
            joined = torch.cat(part) if part else torch.empty(0)
            figures[f"teacher/gap{name}"] = joined.mean().item() if len(joined) else None
            figures[f"teacher/k2{name}"] = (0.5 * joined.square()).mean().item() if len(joined) else None
        figures["missing/masked_positions"] = float(masked)
        figures["gap_by_position"] = [sum(part) / len(part) if part else None for part in deciles]
        return figures

    def samples(self, step: int, student: Student, each: int = 3) -> list[dict[str, Any]]:
        """Some right and some wrong rollouts of the step, token by token."""
        rows = sorted(self.logprobs)
        right = [row for row in rows if self.scored.scores[row].correct]
        wrong = [row for row in rows if not self.scored.scores[row].correct]
        return [self._sample(step, row, student) for row in right[:each] + wrong[:each]]

    def _sample(self, step: int, row: int, student: Student) -> dict[str, Any]:
        rollout, score = self.scored.rollouts[row], self.scored.scores[row]
        teacher = _teacher_row(score, rollout)
        return {
            "step": step,
            "id": rollout.example.id,
            "prompt": rollout.example.prompt_text,
            "reference": rollout.example.reference,
            "tokens": [student.tokenizer.decode([token]) for token in rollout.ids],
            "student_logprobs": self.logprobs[row].tolist(),
            "teacher_logprobs": teacher.tolist(),
            "reward": score.reward,
            "correct": score.correct,
            "extracted": score.extracted,
            "reason": score.reason,
        }
