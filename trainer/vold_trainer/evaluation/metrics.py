"""What is computed from verdicts: shares with their intervals, mean@k, pass@k, maj@k. Pure functions of numbers.

A problem is judged several times; where a verdict is missing, the caller leaves it out. Nothing here turns a missing
verdict into a zero.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 2000


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson, 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of k completions is right, estimated without bias from n, `correct` of them right.

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
    """How much of a majority vote `right` wins: 1 alone at the top, 1/m where m answers share the top, else 0.

    None abstains; where all abstain there is no answer, which is 0. A share of a tie is what a random choice among the
    answers at the top would earn on average.
    """
    counts: dict[Hashable, int] = {}
    for vote in votes:
        if vote is not None:
            counts[vote] = counts.get(vote, 0) + 1
    top = max(counts.values(), default=0)
    return 1.0 / sum(count == top for count in counts.values()) if top and counts.get(right) == top else 0.0


def maj_at_k(votes: Sequence[Hashable | None], right: Hashable, k: int) -> float:
    """The chance that the majority of k completions is right: the mean over the n // k groups of k in a row.

    The groups share no completion, so the mean is unbiased. Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} cannot be estimated from {len(votes)} completions: k must be from 1 to {len(votes)}")
    groups = len(votes) // k
    return sum(majority(votes[at * k : (at + 1) * k], right) for at in range(groups)) / groups


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def bootstrap(
    values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of the mean of one value a problem: problems are drawn anew, with replacement.

    The completions of a problem are not drawn anew, so this is the spread over problems. The same seed gives the same
    interval. (NaN, NaN) of nothing.
    """
    if not len(values):
        return math.nan, math.nan
    given = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(given))  # at once, to bound memory
    means = [
        given[generator.integers(0, len(given), (min(rows, resamples - done), len(given)))].mean(-1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
