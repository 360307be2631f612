"""Rollouts of a student whose weights are spread over processes: each of them holds all weights meanwhile."""

from collections.abc import Sequence

from torch import nn

from vold_trainer.data import Example
from vold_trainer.processes.sharding import whole
from vold_trainer.rollout.base import Engine, OnFinished, Rollout, Sampling


class GatheredEngine:
    """An engine that draws from, and is given, whole weights."""

    def __init__(self, engine: Engine, module: nn.Module) -> None:
        self.engine = engine
        self.module = module
        self.version = engine.version
        self.own_weights = engine.own_weights

    def generate(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        seed: int,
        first_row: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """See Engine."""
        with whole(self.module):
            return self.engine.generate(examples, sampling, seed=seed, first_row=first_row, on_finished=on_finished)

    def sync(self, version: int) -> None:
        """See Engine."""
        with whole(self.module):
            self.engine.sync(version)
        self.version = self.engine.version

    def close(self) -> None:
        self.engine.close()
