"""Batches between drawing and learning: how far the one may run ahead of the other.

With `ahead` 0 a step draws, then learns. With `ahead` N the batches of up to N further steps are drawn before a step
learns, so that their scores come while it does; an engine with weights of its own draws them on a thread meanwhile. A
batch is then learned from by weights that have had up to N more updates than those that drew it.

Which weights draw which batch follows from the step alone, not from how fast anything is.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from vold_trainer.rollout.base import Engine
from vold_trainer.services.outages import Span
from vold_trainer.training import pending_scores as pending
from vold_trainer.training.generation import RolloutBatch


class Pipeline:
    """begin: draws a step's batch and sends it off. steps: of the run."""

    def __init__(self, begin: Callable[[int], RolloutBatch], engine: Engine, *, ahead: int, steps: int) -> None:
        self.begin = begin
        self.engine = engine
        self.ahead = ahead
        self.steps = steps
        self._batches: dict[int, Future[RolloutBatch]] = {}
        self._thread = ThreadPoolExecutor(1, "vold-drawing") if ahead and engine.own_weights else None

    def take(self, step: int) -> RolloutBatch:
        """The batch of `step`, never one that is staler than `ahead`; those of the next steps are on their way then.

        Raises what drawing raises.
        """
        for number in range(step, min(step + self.ahead + 1, self.steps)):
            if not self._holds(number):
                self._batches[number] = self._begin(number)
        return self._batches[step].result()

    def sync(self, version: int) -> list[Span]:
        """Let the engine draw from the student's present weights, which have had `version` updates. What is being drawn
        is drawn to its end first. Returns what took how long.
        """
        self._batches = {step: batch for step, batch in self._batches.items() if step >= version}
        started = time.monotonic()
        idle = not all(batch.done() for batch in self._batches.values())
        wait(self._batches.values())
        drawn = time.monotonic()
        self.engine.sync(version)
        return [*([("wait", started, drawn)] if idle else []), ("sync", drawn, time.monotonic())]

    def save(self, folder: Path, done: int, rank: int = 0) -> None:
        """Keep the batches that steps after the first `done` would learn from: their weights are gone. rank: of the
        process, which keeps its own part of them.
        """
        wait(self._batches.values())
        kept = [
            batch.result()
            for step, batch in sorted(self._batches.items())
            if step >= done and batch.exception() is None and batch.result().version is not None
        ]
        pending.write(folder, kept, rank)

    def put(self, drawn: RolloutBatch) -> None:
        """Take back a batch that `save` kept."""
        batch: Future[RolloutBatch] = Future()
        batch.set_result(drawn)
        self._batches[drawn.step] = batch

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _holds(self, step: int) -> bool:
        batch = self._batches.get(step)
        return batch is not None and not (
            batch.done() and batch.exception() is None and batch.result().staleness > self.ahead
        )

    def _begin(self, step: int) -> Future[RolloutBatch]:
        if self._thread is not None:
            return self._thread.submit(self.begin, step)
        batch: Future[RolloutBatch] = Future()
        batch.set_result(self.begin(step))
        return batch
