"""Means over the tokens for which a value is known, over all processes of a run."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Means:
    """(sum, count) by name, added up over micro-batches and processes. The sums are float64, so that the order of the
    additions has no visible effect. gaps: |log pi_T - log pi_theta| of the tokens, as `sanity.count_gaps` counts them.
    """

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    gaps: Counter[int] = field(default_factory=Counter)

    def add(self, name: str, values_N: Tensor) -> None:
        """Add the finite values."""
        known_N = values_N[values_N.isfinite()]
        self._add(name, known_N.sum(dtype=torch.float64).item(), len(known_N))

    def add_by_position(self, name: str, values_N: Tensor, bins: int) -> None:
        """Add one completion's values in bins of equal width along its positions, as NAME/0 to NAME/bins - 1."""
        self.add_binned(name, values_N, torch.arange(len(values_N)) * bins // max(1, len(values_N)), bins)

    def add_binned(self, name: str, values_N: Tensor, bin_N: Tensor, bins: int) -> None:
        """Add each value to its bin, as NAME/0 to NAME/bins - 1. bin_N: int64, from 0."""
        known_N = values_N.isfinite()
        filled_N = torch.where(known_N, values_N, 0.0).double()
        sums = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_N, filled_N).tolist()
        counts = torch.zeros(bins, dtype=torch.long).index_add(0, bin_N, known_N.long()).tolist()
        for index, (total, count) in enumerate(zip(sums, counts, strict=True)):
            self._add(f"{name}/{index}", total, count)

    def count(self, name: str) -> int:
        """The number of values added."""
        return self.sums.get(name, (0.0, 0))[1]

    def mean(self, name: str) -> float | None:
        """None if no value was added."""
        total, count = self.sums.get(name, (0.0, 0))
        return total / count if count else None

    @classmethod
    def joined(cls, parts: Iterable["Means"]) -> "Means":
        """The means of several processes as one."""
        out = cls()
        for part in parts:
            for name, (total, count) in part.sums.items():
                out._add(name, total, count)
            out.gaps.update(part.gaps)
        return out

    def _add(self, name: str, total: float, count: int) -> None:
        before = self.sums.get(name, (0.0, 0))
        self.sums[name] = (before[0] + total, before[1] + count)
