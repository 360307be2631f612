"""Rollouts of a student with sharded weights: the weights are gathered on every process for the duration."""

from collections.abc import Sequence

from torch import nn

from vold_trainer.data import Example
from vold_trainer.data.faults import OnFault
from vold_trainer.processes.sharding import gathered_weights
from vold_trainer.rollout.base import Engine, OnFinished, Rollout, Sampling


class GatheredEngine:
    """Gathers the weights around `generate` and `sync` of another engine."""

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
        on_fault: OnFault | None = None,
    ) -> list[Rollout]:
        """See Engine."""
        with gathered_weights(self.module):
            return self.engine.generate(
                examples, sampling, seed=seed, first_row=first_row, on_finished=on_finished, on_fault=on_fault
            )

    def sync(self, version: int) -> None:
        """See Engine."""
        with gathered_weights(self.module):
            self.engine.sync(version)
        self.version = self.engine.version

    def close(self) -> None:
        self.engine.close()
