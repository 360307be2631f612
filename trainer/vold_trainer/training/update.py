"""The second half of a step: what the objective makes of scored rollouts, and the optimiser's updates."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vold_trainer.config import TrainConfig
from vold_trainer.objectives import Needs
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.wrapping import Wrapped
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.student.batching import Batch, make_batch, micro_batches
from vold_trainer.student.models import Student
from vold_trainer.student.plan import plan_updates
from vold_trainer.training.means import Means
from vold_trainer.training.token_log import TokenLog, token_figures


class PolicyUpdater:
    """The student's weights and the optimizer that changes them."""

    def __init__(self, config: TrainConfig, student: Student, ranks: Ranks) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        self.wrapped = Wrapped(student, config.optim, config.steps, config.seed, ranks)
        self.module = self.wrapped.module

    def update(
        self, step: int, scored: ScoredBatch, needs: Needs, spare: Rollout | None = None
    ) -> tuple[dict[str, Any], TokenLog]:
        """Optimiser steps over all processes' rollouts of step `step`; the figures of what was learned from, and the
        tokens of this process. spare: one that stands in, without weight, where a process has nothing to learn from.

        Each micro-batch waits for its own scores only, while others are on their way; which rollouts it holds does not
        depend on when they come. No weight changes before all scores are there: what they raise (RunError where a
        service is gone) leaves the student as it was. Several processes begin when all of them have their scores.
        """
        config = self.config
        spare = spare or scored.rollouts[0]
        if self.ranks.size > 1:
            self.ranks.together(scored.wait)
        drawn = self.ranks.gather([(rollout.row, len(rollout.ids)) for rollout in scored.rollouts])
        seed = config.seed * 1_000_003 + step
        size, micro, even = config.batch.size, config.batch.micro, self.wrapped.even
        updates = plan_updates(drawn, self.ranks.rank, size=size, micro=micro, seed=seed, even=even)
        old = self._logprobs(scored.rollouts, max(map(len, drawn)), spare) if len(updates) > 1 else None
        log = TokenLog(scored, old)
        sums: dict[str, float] = {}
        norms = []
        for update in updates:
            for number, rows in enumerate(update.passes, 1):
                with self.wrapped.one_pass(last=number == len(update.passes)):
                    if not rows:
                        self.wrapped.add(self._nothing(spare))
                        continue
                    share = (
                        sum(len(scored.rollouts[row].ids) for row in rows) / update.tokens
                        if self.objective.normalise == "token"
                        else len(rows) / update.sequences
                    )
                    for name, value in self._learn(step, scored, rows, needs, share, old, log).items():
                        sums[name] = sums.get(name, 0.0) + value * share * update.sequences / update.rest
            scored.wait()
            norms.append(self.wrapped.step())
        lr = self.wrapped.advance()
        means = Means.joined(self.ranks.gather(log.sums()))
        figures = {**self.ranks.sum(sums), **token_figures(means), "grad_norm": sum(norms) / len(norms), "lr": lr}
        return figures, log

    def _batch(self, rollouts: list[Rollout]) -> Batch:
        examples, ids = [rollout.example for rollout in rollouts], [rollout.ids for rollout in rollouts]
        return make_batch(self.student, examples, ids, device=self.accelerator.device, share=not self.wrapped.even)

    def _nothing(self, spare: Rollout) -> Tensor:
        """A pass that changes no gradient."""
        batch = self._batch([spare])
        own = self.module(batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature)
        return 0.0 * own.logprobs_N.sum()

    def _learn(
        self,
        step: int,
        scored: ScoredBatch,
        rows: list[int],
        needs: Needs,
        share: float,
        old: Mapping[int, Tensor] | None,
        log: TokenLog,
    ) -> dict[str, float]:
        """Forward and backward of one micro-batch, weighted by its share of the optimiser step."""
        device, rollout = self.accelerator.device, self.config.rollout
        part = [scored.rollouts[row] for row in rows]
        batch = self._batch(part)
        ids_NK, theirs_NK = None, None
        if needs.top_k or needs.candidates:
            scored.wait(rows)
            ids_NK, theirs_NK = scored.support(rows)
        own = self.module(
            batch.inputs,
            batch.predicts_BS,
            batch.ids_N,
            rollout.temperature,
            None if ids_NK is None else ids_NK.to(device),
        )
        scored.wait(rows)
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
        self.wrapped.add(outcome.loss * share)
        log.add(rows, own.logprobs_N.detach().cpu(), own.entropy_N.cpu())
        return {"loss": outcome.loss.item(), **outcome.metrics}

    @torch.no_grad()
    def _logprobs(self, rollouts: list[Rollout], most: int, spare: Rollout) -> dict[int, Tensor]:
        """The student's log-probabilities before any update, by row. most: what the busiest process has to do."""
        found: dict[int, Tensor] = {}
        micro = self.config.batch.micro
        parts = micro_batches([len(r.ids) for r in rollouts], micro)
        if self.wrapped.even:
            parts += [[] for _ in range(math.ceil(most / micro) - len(parts))]
        for part in parts:
            if not part:
                self._nothing(spare)
                continue
            chosen = [rollouts[row] for row in part]
            batch = self._batch(chosen)
            own = self.module(batch.inputs, batch.predicts_BS, batch.ids_N, self.config.rollout.temperature)
            found.update(zip(part, own.logprobs_N.split([len(r.ids) for r in chosen]), strict=True))
        return found
