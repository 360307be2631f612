"""The second half of a step: the objective's loss on scored rollouts, and the optimiser's updates."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vold_trainer.config import TrainConfig
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.objectives import Needs
from vold_trainer.objectives.base import with_entropy_bonus
from vold_trainer.objectives.reference import with_reference_kl
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.skipped import mean_norm
from vold_trainer.processes.start_weights import StartWeights
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.student.batching import Batch, make_batch, micro_batches
from vold_trainer.student.models import Student
from vold_trainer.student.plan import plan_optimiser_steps
from vold_trainer.student.readable import make_readable_batch
from vold_trainer.training.broken_rows import readable_dummy
from vold_trainer.training.means import Means
from vold_trainer.training.token_log import TokenLog, token_metrics


class PolicyUpdater:
    """The student's weights and the optimizer that changes them. start: the weights of the run's start, if they are the
    reference; the student is at that start when this is made, and restored from a checkpoint later.
    """

    def __init__(self, config: TrainConfig, student: Student, ranks: Ranks) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        self.prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
        self.module = self.prepared.module
        self.start = StartWeights(self.prepared, student.model) if config.copies_start else None
        self.faults: dict[int, RowFault] = {}

    def update(
        self, step: int, scored: ScoredBatch, needs: Needs, dummy: Rollout | None = None
    ) -> tuple[dict[str, Any], TokenLog]:
        """Optimiser steps over all processes' rollouts of step `step`. Returns the metrics of all rollouts, and the
        tokens of this process. dummy: a rollout that is passed without weight if a process has no rollout for a pass.

        A prompt that can no longer be read is left out as if all of its scores were missing, and is in `faults`, by its
        completions' indices. Raises RowError if such a row stops the run.

        Each micro-batch waits for its own scores only; which rollouts it holds does not depend on when scores come. No
        weight changes before all scores are there, so an error of a service (RunError) leaves the student as it was. An
        optimiser step whose gradient is not finite is skipped.
        Several processes begin once all of them have their scores.
        """
        dummy = dummy or scored.rollouts[0]
        self.faults = {}
        if self.ranks.size > 1:
            self.ranks.run_on_all(scored.wait)
        lengths = self.ranks.gather([(rollout.row, len(rollout.ids)) for rollout in scored.rollouts])
        seed = self.config.seed * 1_000_003 + step
        size, micro, even = self.config.batch.size, self.config.batch.micro, self.prepared.lock_step
        updates = plan_optimiser_steps(lengths, self.ranks.rank, size=size, micro=micro, seed=seed, equal_counts=even)
        most = max(map(len, lengths))
        old = self._logprobs(scored.rollouts, most, dummy) if len(updates) > 1 else None
        reference = None
        if needs.reference and self.start is not None:
            with self.start.active():
                reference = self._logprobs(scored.rollouts, most, dummy)
        log = TokenLog(scored, old, getattr(self.objective, "gap_cap", None))
        sums: dict[str, float] = {}
        norms = []
        for update in updates:
            for number, rows in enumerate(update.micro_batches, 1):
                with self.prepared.micro_batch(last=number == len(update.micro_batches)):
                    if not rows:
                        self.prepared.backward(self._dummy_loss(dummy))
                        continue
                    rows, batch = self._batch(scored.rollouts, rows)
                    if batch is None:
                        self.prepared.backward(self._dummy_loss(dummy))
                        continue
                    share = (
                        sum(len(scored.rollouts[row].ids) for row in rows) / update.tokens
                        if self.objective.normalise == "token"
                        else len(rows) / update.sequences
                    )
                    metrics = self._train_micro_batch(step, scored, rows, batch, needs, share, old, reference, log)
                    for name, value in metrics.items():
                        sums[name] = sums.get(name, 0.0) + value * share * update.sequences / update.total_sequences
            scored.wait()
            norms.append(self.prepared.optimizer_step())
        lr = self.prepared.scheduler_step()
        means = Means.joined(self.ranks.gather(log.finish()))
        step_metrics = {**self.ranks.sum(sums), **token_metrics(means), "grad_norm": mean_norm(norms), "lr": lr}
        return {**step_metrics, "optim/skipped": float(self.prepared.skipped.recent)}, log

    def skip(self) -> dict[str, Any]:
        """A step without any rollout: no weight changes, and the schedule goes on. Returns the metrics."""
        with warnings.catch_warnings():
            # At the first step of a run torch warns that the optimizer has made no step before.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            return {"lr": self.prepared.scheduler_step()}

    def _batch(self, rollouts: list[Rollout], rows: list[int]) -> tuple[list[int], Batch | None]:
        """(those of the rows that can be read, their batch; None if there are none)."""
        rows = [row for row in rows if row not in self.faults]

        def on_fault(index: int, fault: RowFault) -> None:
            if self.config.data.skip_broken is False:
                raise RowError(fault)
            self.faults[rows[index]] = fault

        readable, batch = (
            make_readable_batch(
                self.student,
                [rollouts[row].example for row in rows],
                [rollouts[row].ids for row in rows],
                on_fault,
                device=self.accelerator.device,
                share=not self.prepared.lock_step,
            )
            if rows
            else ([], None)
        )
        return [rows[index] for index in readable], batch

    def _dummy_loss(self, dummy: Rollout) -> Tensor:
        """A loss with gradient zero."""
        dummy = readable_dummy(self.student, dummy)
        batch = make_batch(
            self.student,
            [dummy.example],
            [dummy.ids],
            device=self.accelerator.device,
            share=not self.prepared.lock_step,
        )
        student = self.module(batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature)
        return 0.0 * student.logprobs_N.sum()

    def _train_micro_batch(
        self,
        step: int,
        scored: ScoredBatch,
        rows: list[int],
        batch: Batch,
        needs: Needs,
        share: float,
        old: Mapping[int, Tensor] | None,
        reference: Mapping[int, Tensor] | None,
        log: TokenLog,
    ) -> dict[str, float]:
        """Forward and backward pass of one micro-batch, weighted by its share of the optimiser step."""
        device, rollout = self.accelerator.device, self.config.rollout
        support_ids_NK, teacher_NK = None, None
        if needs.top_k or needs.candidates:
            scored.wait(rows)
            support_ids_NK, teacher_NK = scored.support(rows)
        student = self.module(
            batch.inputs,
            batch.predicts_BS,
            batch.ids_N,
            rollout.temperature,
            None if support_ids_NK is None else support_ids_NK.to(device),
            entropy_gradient=self.objective.entropy_bonus > 0,
        )
        scored.wait(rows)
        rollouts = scored.inputs(
            rows,
            batch,
            student.logprobs_N,
            None if old is None else torch.cat([old[row] for row in rows]),
            needs,
            None if teacher_NK is None else (student.support_logprobs_NK, teacher_NK),
            None if reference is None else torch.cat([reference[row] for row in rows]),
            step=step,
            max_tokens=rollout.max_tokens,
        )
        outcome = with_reference_kl(self.objective, self.objective(rollouts), rollouts)
        outcome = with_entropy_bonus(self.objective, outcome, rollouts, batch.pad(student.entropy_N))
        self.prepared.backward(outcome.loss * share)
        log.add(rows, student.logprobs_N.detach().cpu(), student.entropy_N.detach().cpu())
        return {"loss": outcome.loss.item(), **outcome.metrics}

    @torch.no_grad()
    def _logprobs(self, rollouts: list[Rollout], most: int, dummy: Rollout) -> dict[int, Tensor]:
        """The log-probabilities under the present weights, by row. most: rollouts of the process with the most."""
        logprobs: dict[int, Tensor] = {}
        micro = self.config.batch.micro
        parts = micro_batches([len(r.ids) for r in rollouts], micro)
        if self.prepared.lock_step:
            parts += [[] for _ in range(math.ceil(most / micro) - len(parts))]
        for part in parts:
            part, batch = self._batch(rollouts, part)
            if batch is None:
                self._dummy_loss(dummy)
                continue
            chosen = [rollouts[row] for row in part]
            student = self.module(batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature)
            logprobs.update(zip(part, student.logprobs_N.split([len(r.ids) for r in chosen]), strict=True))
        return logprobs
