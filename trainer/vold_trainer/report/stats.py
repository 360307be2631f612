"""Statistics for the tables and plots of the report."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TypeVar

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items` (count >= 2), evenly spaced, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def ema(values: Sequence[float | None], span: float) -> list[float | None]:
    """Exponential moving average with weight 2 / (span + 1), with bias correction; None has no weight.

    The correction divides by the sum of the weights so far, so the first average is the first value.
    """
    decay = 1 - 2 / (span + 1)
    total = weight = 0.0
    out: list[float | None] = []
    for value in values:
        if value is None:
            out.append(None)
            continue
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        out.append(total / weight)
    return out


def wilson(accuracy: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of an accuracy over `n` independent trials, 95 % by default (Wilson, 1927).

    Unlike the normal interval it stays inside [0, 1] and has a width at 0 and 1.
    Raises ValueError for an accuracy outside [0, 1] or n below 1.
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must be in [0, 1] and n at least 1, not {accuracy} and {n}")
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None if there are too few values."""
    if not values:
        return None, None
    return fmean(values), stdev(values) if len(values) > 1 else None
