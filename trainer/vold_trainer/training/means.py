"""Means of figures that are known for some tokens of some completions, over all processes of a run."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Means:
    """Sums and counts by name, which add up over micro-batches and processes; in float64, so that the order in which
    they do does not show.
    """

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, name: str, values_N: Tensor) -> None:
        """Count in what is finite of these."""
        known_N = values_N[values_N.isfinite()]
        self._add(name, known_N.sum(dtype=torch.float64).item(), len(known_N))

    def add_places(self, name: str, values_N: Tensor, places: int) -> None:
        """Count in one completion's values, from its first position to its last, as NAME/0 to NAME/places - 1."""
        self.add_at(name, values_N, torch.arange(len(values_N)) * places // max(1, len(values_N)), places)

    def add_at(self, name: str, values_N: Tensor, place_N: Tensor, places: int) -> None:
        """Count in values at their places, int64 from 0, as NAME/0 to NAME/places - 1."""
        known_N = values_N.isfinite()
        filled_N = torch.where(known_N, values_N, 0.0).double()
        sums = torch.zeros(places, dtype=torch.float64).index_add(0, place_N, filled_N).tolist()
        counts = torch.zeros(places, dtype=torch.long).index_add(0, place_N, known_N.long()).tolist()
        for place, (total, count) in enumerate(zip(sums, counts, strict=True)):
            self._add(f"{name}/{place}", total, count)

    def count(self, name: str) -> int:
        """How many values were counted in."""
        return self.sums.get(name, (0.0, 0))[1]

    def mean(self, name: str) -> float | None:
        """None where nothing is known."""
        total, count = self.sums.get(name, (0.0, 0))
        return total / count if count else None

    @classmethod
    def joined(cls, parts: Iterable["Means"]) -> "Means":
        """Those of several processes as one."""
        out = cls()
        for part in parts:
            for name, (total, count) in part.sums.items():
                out._add(name, total, count)
        return out

    def _add(self, name: str, total: float, count: int) -> None:
        before = self.sums.get(name, (0.0, 0))
        self.sums[name] = (before[0] + total, before[1] + count)
