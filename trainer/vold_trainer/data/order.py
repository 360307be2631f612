"""The order of a run's rows: a new shuffle for every epoch, which depends on the seed alone, so that a resumed run goes
on in the same order.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


class PromptOrder:
    """The prompts of each step. Another number of prompts is another shuffle."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count = count
        self.per_step = per_step
        self.seed = seed
        self._epochs: dict[int, Sequence[int]] = {}

    def indices(self, step: int) -> list[int]:
        """The `per_step` indices of step `step`, counted from 0."""
        first = step * self.per_step
        return [int(self._epoch(n // self.count)[n % self.count]) for n in range(first, first + self.per_step)]

    def _epoch(self, number: int) -> Sequence[int]:
        if number not in self._epochs:
            self._epochs = {epoch: order for epoch, order in self._epochs.items() if epoch >= number - 1} | {
                number: self._shuffle(number)
            }
        return self._epochs[number]

    def _shuffle(self, epoch: int) -> Sequence[int]:
        import torch  # not for whoever only reads rows: importing it takes seconds

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        indices: list[int] = torch.randperm(self.count, generator=generator).tolist()
        return indices


class TraceOrder(PromptOrder):
    """The traces of each step, ordered by a hash of seed, epoch and key: whatever else is among the traces, two of them
    come in the same order. Which traces a verifier accepts may differ by a few between two machines.
    """

    def __init__(self, keys: Sequence[str], per_step: int, seed: int) -> None:
        """keys: of the traces, unique."""
        super().__init__(len(keys), per_step, seed)
        self._keys = keys

    def _shuffle(self, epoch: int) -> Sequence[int]:
        # An array, and no list of hundreds of thousands of Python's numbers beside as many hashes.
        words_N2 = np.empty((self.count, 2), ">u8")
        for index, key in enumerate(self._keys):
            hashed = hashlib.blake2b(f"{self.seed}:{epoch}:{key}".encode(), digest_size=16).digest()
            words_N2[index] = np.frombuffer(hashed, ">u8")
        order: Sequence[int] = np.lexsort((words_N2[:, 1], words_N2[:, 0])).astype(np.int32)  # type: ignore[assignment]
        return order
