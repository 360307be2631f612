"""Metrics of verdicts: confidence intervals, mean, pass@k, maj@k. Pure functions of numbers.

A problem may have several verdicts. The caller leaves out missing verdicts; none is counted as 0.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 2000


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of correct / n (Wilson, 1927); (0, 1) if n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """An unbiased estimate of the probability that at least one of k completions is correct, from n completions.

    1 - C(n - correct, k) / C(n, k), as a product that does not overflow (Chen et al. 2021, arXiv:2107.03374, eq. 1).
    Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} completions: k must be from 1 to {n}")
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} completions cannot be right")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def majority(votes: Sequence[Hashable | None], right: Hashable) -> float:
    """The expected correctness of a majority vote: 1 if `right` has the most votes, 1/m if m answers tie, else 0.

    The tie value is the mean of a random choice among the tied answers. None abstains; 0 if all abstain.
    """
    counts: dict[Hashable, int] = {}
    for vote in votes:
        if vote is not None:
            counts[vote] = counts.get(vote, 0) + 1
    top = max(counts.values(), default=0)
    return 1.0 / sum(count == top for count in counts.values()) if top and counts.get(right) == top else 0.0


def maj_at_k(votes: Sequence[Hashable | None], right: Hashable, k: int) -> float:
    """An unbiased estimate of the probability that the majority of k completions is correct: the mean over the n // k
    disjoint groups of k consecutive completions.

    Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} cannot be estimated from {len(votes)} completions: k must be from 1 to {len(votes)}")
    groups = len(votes) // k
    return sum(majority(votes[at * k : (at + 1) * k], right) for at in range(groups)) / groups


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def bootstrap(
    values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The bootstrap percentile interval of the mean of one value per problem: problems are resampled with replacement.

    The completions of a problem are not resampled, so the interval covers the variation over problems only. The same
    seed gives the same interval. (NaN, NaN) without values.
    """
    if not len(values):
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(array))  # resamples at a time, to bound memory
    means = [
        array[generator.integers(0, len(array), (min(rows, resamples - done), len(array)))].mean(-1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
