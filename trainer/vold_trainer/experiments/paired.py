"""Comparison of two rows seed by seed: the mean difference, its standard error, and a sign test."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Paired:
    """The differences of two rows. error: the standard error of the mean; None for one pair. above and below: pairs
    with a positive and with a negative difference. p: of the two-sided sign test.
    """

    n: int
    mean: float
    error: float | None
    above: int
    below: int
    p: float

    def describe(self) -> str:
        """In points: "+3.7 ± 0.9, 8 of 8"."""
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:+.1f}{error}, {self.above} of {self.n}"


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """`first` minus `second`, over the seeds that both have; None if there are none."""
    seeds = sorted(first.keys() & second.keys())
    differences = [first[seed] - second[seed] for seed in seeds]
    if not differences:
        return None
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Paired(len(differences), fmean(differences), error, above, below, sign_test(above, below))


def sign_test(above: int, below: int) -> float:
    """The probability of a split at least as uneven, if either sign is equally likely; ties are left out (Dixon and
    Mood, 1946).
    """
    n, fewer = above + below, min(above, below)
    tail: float = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)
