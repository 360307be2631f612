"""The order of a run's examples."""

from collections.abc import Sequence


class PromptOrder:
    """The examples of each step: a new shuffle for every epoch, which depends on the seed alone, so that a resumed run
    continues with the same order.
    """

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count = count
        self.per_step = per_step
        self.seed = seed
        self._epochs: dict[int, Sequence[int]] = {}

    def indices(self, step: int) -> list[int]:
        """The `per_step` indices of step `step`, counted from 0."""
        first = step * self.per_step
        return [self._epoch(n // self.count)[n % self.count] for n in range(first, first + self.per_step)]

    def _epoch(self, number: int) -> Sequence[int]:
        import torch  # not for whoever only reads rows: importing it takes seconds

        if number not in self._epochs:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._epochs = {epoch: order for epoch, order in self._epochs.items() if epoch >= number - 1} | {
                number: torch.randperm(self.count, generator=generator).tolist()
            }
        return self._epochs[number]
