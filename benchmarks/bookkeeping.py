"""CPU time of a step's work beside the models: advantages, and the ids that the teacher gets.

python benchmarks/bookkeeping.py

Advantages: each micro-batch computes its own groups, or all groups of the step. Ids: a completion is cut and masked by
NumPy, or token by token. Both sides run in turn.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import show
from torch import Tensor
from vold_trainer.data import Example
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.handshake import truncate_for_teacher
from vold_trainer.scoring.scores import RolloutScore

ROUNDS = 3
ROLLOUTS, GROUP, MICRO = 8192, 8, 8
COMPLETIONS, TOKENS = 1280, 2500
VOCABULARY, TEACHER_SIZE = 151_936, 151_936


class WholeStep(ScoredBatch):
    """Computes the advantages of all groups whenever a micro-batch has waited."""

    def wait(self, rows: Sequence[int] | None = None) -> None:
        if self.await_scores is not None:
            super().wait(rows)
            self._compute_advantages(range(len(self.rollouts) // self.group))


def token_by_token(ids: Sequence[int], shared_V: Tensor, teacher_size: int) -> tuple[list[int], list[bool]]:
    sent = list(ids)
    for position, token in enumerate(sent):
        if token >= teacher_size:
            sent = sent[:position]
            break
    return sent, [bool(shared_V[token]) for token in sent]


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def advantages(kind: type[ScoredBatch]) -> Callable[[], object]:
    example = Example("a", ({"role": "user", "content": "?"},), "1")
    rng = np.random.default_rng(0)
    rollouts = [Rollout(row, example, (1,), (2,) * 8, "", False) for row in range(ROLLOUTS)]
    scores = [RolloutScore(reward=float(right), correct=bool(right)) for right in rng.integers(0, 2, ROLLOUTS)]
    order = rng.permutation(ROLLOUTS).tolist()

    def work() -> ScoredBatch:
        batch = kind(rollouts, scores, GROUP, await_scores=lambda teacher_rows, verifier_rows: None)
        for start in range(0, ROLLOUTS, MICRO):
            batch.wait(order[start : start + MICRO])
        batch.wait()
        return batch

    return work


def teacher_ids(truncate: Callable[..., object]) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    completions = [tuple(rng.integers(0, VOCABULARY, TOKENS).tolist()) for _ in range(COMPLETIONS)]
    shared_V = torch.from_numpy(rng.random(VOCABULARY) < 0.99)
    return lambda: [truncate(ids, shared_V, TEACHER_SIZE) for ids in completions]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for label, before, after in (
        (
            f"advantages, {ROLLOUTS:,} rollouts, micro-batches of {MICRO}",
            advantages(WholeStep),
            advantages(ScoredBatch),
        ),
        (
            f"ids for the teacher, {COMPLETIONS * TOKENS / 1e6:.1f} M tokens",
            teacher_ids(token_by_token),
            teacher_ids(truncate_for_teacher),
        ),
    ):
        times = [(cpu_seconds(before), cpu_seconds(after)) for _ in range(ROUNDS)]
        first, second = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [a / b for a, b in times]
        ratio = f"{statistics.median(ratios):.0f}x ({min(ratios):.0f} to {max(ratios):.0f})"
        rows.append([label, f"{first:.2f}", f"{second:.2f}", ratio])
    columns = ["work of a step", "plainly, CPU s", "vold, CPU s", "less time"]
    show(f"A step's work beside the models, medians of {ROUNDS}", columns, rows)


if __name__ == "__main__":
    main()
