"""The second half of a step: what the objective makes of scored rollouts, and the optimiser's updates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vold_trainer import checkpoint
from vold_trainer.batching import make_batch, micro_batches
from vold_trainer.config import TrainConfig
from vold_trainer.models import CompletionScorer, Student
from vold_trainer.objectives import Needs
from vold_trainer.optim import make_optimizer
from vold_trainer.rollout.base import Rollout
from vold_trainer.scored import Scored
from vold_trainer.token_log import TokenLog


class Learner:
    """The student's weights and the optimizer that changes them."""

    def __init__(self, config: TrainConfig, student: Student, accelerator: Accelerator) -> None:
        self.config = config
        self.objective = config.objective
        self.student = student
        self.accelerator = accelerator
        optimizer, scheduler = make_optimizer(student.model, config.optim, config.steps)
        self.module, self.optimizer, self.scheduler = accelerator.prepare(
            CompletionScorer(student.model), optimizer, scheduler
        )

    def save(self, step: int, also: Callable[[Path], None] | None = None) -> Path:
        """A checkpoint to resume from, after `step` steps; its folder. also: writes into it what others want kept."""
        return checkpoint.save(self.config.out, step, self.student.model, self.optimizer, self.scheduler, also=also)

    def restore(self) -> int | None:
        """Go on from the last checkpoint; the steps that it had done, or None where there is none."""
        found = checkpoint.latest(self.config.out)
        if found is None:
            return None
        return checkpoint.restore(found, self.student.model, self.optimizer, self.scheduler)

    def update(self, step: int, scored: Scored, needs: Needs) -> tuple[dict[str, Any], TokenLog]:
        """Optimiser steps over all rollouts of step `step`; the figures of what was learned from, and its tokens.

        Each micro-batch waits for its own scores only, while others are on their way; which rollouts it holds does not
        depend on when they come. No weight changes before all scores are there: what they raise (RunError where a
        service is gone) leaves the student as it was.
        """
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
                for name, value in self._learn(step, scored, rows, needs, share, old, log).items():
                    sums[name] = sums.get(name, 0.0) + value * share * len(chosen) / len(order)
            scored.wait()
            norms.append(float(self.accelerator.clip_grad_norm_(self.module.parameters(), config.optim.max_grad_norm)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        lr = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        return {**sums, **log.figures(), "grad_norm": sum(norms) / len(norms), "lr": lr}, log

    def _learn(
        self,
        step: int,
        scored: Scored,
        rows: list[int],
        needs: Needs,
        share: float,
        old: Mapping[int, Tensor] | None,
        log: TokenLog,
    ) -> dict[str, float]:
        """Forward and backward of one micro-batch, weighted by its share of the optimiser step."""
        device, rollout = self.accelerator.device, self.config.rollout
        part = [scored.rollouts[row] for row in rows]
        batch = make_batch(self.student, [r.example for r in part], [r.ids for r in part], device=device)
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
