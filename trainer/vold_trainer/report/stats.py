"""The small statistics that the report's tables and plots share."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items` (count >= 2), evenly spaced, always with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def ema(values: Sequence[float | None], span: float) -> list[float | None]:
    """Exponential moving average with weight 2 / (span + 1), corrected for its start; None carries no weight.

    The correction divides by the weights seen so far, so the first value is the first mean and not a share of it.
    """
    keep = 1 - 2 / (span + 1)
    total = weight = 0.0
    out: list[float | None] = []
    for value in values:
        if value is None:
            out.append(None)
            continue
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def wilson(accuracy: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share over `n` independent trials, 95 % by default (Wilson, 1927).

    Unlike the normal interval it stays inside [0, 1] and has a width at 0 and 1.
    Raises ValueError for what is no share.
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must be in [0, 1] and n at least 1, not {accuracy} and {n}")
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None for what too few values cannot give."""
    if not values:
        return None, None
    return fmean(values), stdev(values) if len(values) > 1 else None
