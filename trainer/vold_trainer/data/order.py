"""The order in which a run takes its examples."""

from collections.abc import Sequence

import torch


class PromptOrder:
    """Which examples each step takes: a fresh shuffle for every pass over the data, a function of seed and step
    alone, so that a resumed run goes on where it was.
    """

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count = count
        self.per_step = per_step
        self.seed = seed
        self._passes: dict[int, Sequence[int]] = {}

    def indices(self, step: int) -> list[int]:
        """The `per_step` indices of step `step`, counted from 0."""
        first = step * self.per_step
        return [self._pass(n // self.count)[n % self.count] for n in range(first, first + self.per_step)]

    def _pass(self, number: int) -> Sequence[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._passes = {kept: order for kept, order in self._passes.items() if kept >= number - 1} | {
                number: torch.randperm(self.count, generator=generator).tolist()
            }
        return self._passes[number]
