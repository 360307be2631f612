"""eval.json as dataclasses: accuracies and further metrics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A further metric of a test set, such as pass@8. share: whether the value is a share in [0, 1]; if None,
    the name of the metric says so.
    """

    value: float
    interval: tuple[float, float] | None = None
    share: bool | None = None


@dataclass(frozen=True)
class Score:
    """An accuracy in [0, 1] over `n` problems; `interval` is None if the file has none."""

    accuracy: float | None
    n: int | None
    interval: tuple[float, float] | None = None
    by_category: Mapping[str, "Score"] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """eval.json: a score per test set ("text", "image", ...), how many answers have no verdict, and why."""

    scores: Mapping[str, Score]
    errors: int | None
    reasons: tuple[str, ...] = ()


def evaluation_of(raw: Mapping[str, Any]) -> Evaluation:
    scores = {name: score for name, item in raw.items() if (score := _score(item)) is not None}
    reasons = [text for item in raw.values() for text in _texts(_mapping(item).get("reasons"))]
    return Evaluation(scores=scores, errors=count(raw.get("errors")), reasons=tuple(reasons))


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _score(raw: Any) -> Score | None:
    if not isinstance(raw, Mapping):
        return None
    return Score(
        accuracy=share(raw.get("accuracy")),
        n=count(raw.get("n")),
        interval=_interval(raw.get("interval")),
        by_category=_parts(raw),
        measures=dict(_measures(raw)),
    )


def _parts(raw: Mapping[str, Any]) -> dict[str, Score]:
    """The scores by category, with the metrics of sampled answers, and by each facet."""
    categories, sampled = _mapping(raw.get("by_category")), _mapping(_mapping(raw.get("sampled")).get("by_category"))
    items = {
        str(name): {**_mapping(categories.get(name)), "sampled": sampled.get(name)}
        for name in {**categories, **sampled}
    }
    for facet, values in _mapping(raw.get("by_facet")).items():
        items |= {f"{facet}: {name}": item for name, item in _mapping(values).items()}
    return {name: score for name, item in items.items() if (score := _score(item)) is not None}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _interval(raw: Any) -> tuple[float, float] | None:
    ends = [number(end) for end in raw] if isinstance(raw, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def _measures(raw: Mapping[str, Any]) -> Iterator[tuple[str, Measure]]:
    """Every further number, plain or as {"value", "interval"}, so that new metrics need no change here; then a
    benchmark's own metrics, and the metrics of sampled answers.
    """
    yield from _plain_measures(raw, skip=_SKIPPED_KEYS)
    yield from _plain_measures(_mapping(raw.get("aggregate")), share=True)
    sampled = _mapping(raw.get("sampled"))
    yield from _plain_measures(sampled, skip=_SKIPPED_SAMPLED_KEYS)
    for name, measure in _plain_measures(_mapping(sampled.get("aggregate")), share=True):
        yield f"{name}, sampled", measure


_SKIPPED_KEYS = ("accuracy", "n", "interval", "by_category", "by_facet", "errors", "problems", "aggregate", "sampled")
_SKIPPED_SAMPLED_KEYS = (*_SKIPPED_KEYS, "temperature", "top_p", "mean_length", "truncated")


def _plain_measures(
    raw: Mapping[str, Any], *, skip: Sequence[str] = (), share: bool | None = None
) -> Iterator[tuple[str, Measure]]:
    for name, item in raw.items():
        if name in skip:
            continue
        inner = _mapping(item)
        value = number(next((inner[key] for key in ("value", "mean", "accuracy", "estimate") if key in inner), item))
        if value is not None:
            interval = _interval(inner.get("interval", raw.get(f"{name}_interval")))
            yield str(name), Measure(value, interval, share)


def number(value: Any) -> float | None:
    """A finite float, or None for everything else: null, NaN, infinity, text, a nested object."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def share(value: Any) -> float | None:
    """A number in [0, 1], or None."""
    result = number(value)
    return result if result is not None and 0 <= result <= 1 else None


def count(value: Any) -> int | None:
    result = number(value)
    return None if result is None else int(result)
