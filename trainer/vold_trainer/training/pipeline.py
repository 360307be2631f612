"""Batches between generation and policy update: how far generation may run ahead.

With `ahead` 0 a step generates, then updates. With `ahead` N the batches of up to N further steps are generated before
a step updates, so that their scores come during the update; an engine with weights of its own generates on a thread
meanwhile. A batch is then trained on by weights with up to N more updates than the weights that generated it.

Which weights generate which batch is a function of the step alone, not of timing.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from vold_trainer.rollout.base import Engine
from vold_trainer.services.outages import Span
from vold_trainer.training import saved_batches
from vold_trainer.training.generation import RolloutBatch


class Pipeline:
    """start: generates a step's batch and requests its scores. steps: of the run."""

    def __init__(self, start: Callable[[int], RolloutBatch], engine: Engine, *, ahead: int, steps: int) -> None:
        self.start = start
        self.engine = engine
        self.ahead = ahead
        self.steps = steps
        self._batches: dict[int, Future[RolloutBatch]] = {}
        self._executor = ThreadPoolExecutor(1, "vold-generate") if ahead and engine.own_weights else None

    def take(self, step: int) -> RolloutBatch:
        """The batch of `step`, at most `ahead` updates stale. Starts the batches of the next `ahead` steps.

        Raises the errors of generation.
        """
        for number in range(step, min(step + self.ahead + 1, self.steps)):
            if not self._has_fresh(number):
                self._batches[number] = self._start(number)
        return self._batches[step].result()

    def sync(self, version: int) -> list[Span]:
        """Let the engine generate from the student's present weights, which have had `version` updates, once no batch
        is being generated. Returns the spans of the wait and of the synchronisation.
        """
        self._batches = {step: batch for step, batch in self._batches.items() if step >= version}
        started = time.monotonic()
        idle = not all(batch.done() for batch in self._batches.values())
        wait(self._batches.values())
        generated = time.monotonic()
        self.engine.sync(version)
        return [*([("wait", started, generated)] if idle else []), ("sync", generated, time.monotonic())]

    def save(self, folder: Path, done: int, rank: int = 0) -> None:
        """Write process `rank`'s part of the batches of the steps after the first `done` into `folder`: the weights
        that generated them will be gone.
        """
        wait(self._batches.values())
        batches = [
            batch.result()
            for step, batch in sorted(self._batches.items())
            if step >= done and batch.exception() is None and batch.result().version is not None
        ]
        saved_batches.write(folder, batches, rank)

    def restore(self, batch: RolloutBatch) -> None:
        """Add a batch that `save` wrote."""
        future: Future[RolloutBatch] = Future()
        future.set_result(batch)
        self._batches[batch.step] = future

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _has_fresh(self, step: int) -> bool:
        """Whether there is a batch of `step`, pending or at most `ahead` updates stale."""
        batch = self._batches.get(step)
        return batch is not None and not (
            batch.done() and batch.exception() is None and batch.result().staleness > self.ahead
        )

    def _start(self, step: int) -> Future[RolloutBatch]:
        if self._executor is not None:
            return self._executor.submit(self.start, step)
        batch: Future[RolloutBatch] = Future()
        batch.set_result(self.start(step))
        return batch
