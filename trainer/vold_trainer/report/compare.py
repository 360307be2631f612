"""Runs side by side: their key metrics at the start and at the end, and the differences of their configurations."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import yaml

from vold_trainer.report import formats
from vold_trainer.report.read import Run

WIDTH, HEIGHT = 120, 28


@dataclass(frozen=True)
class KeyMetric:
    """A metric in the overview: its key in metrics.jsonl, its name, and its unit; "%" for a share in [0, 1]."""

    key: str
    label: str
    unit: str = ""


KEY_METRICS = (
    KeyMetric("reward/mean", "reward"),
    KeyMetric("teacher/k2_wrong", "k2, wrong answers", "nats²"),
    KeyMetric("teacher/gap", "teacher minus student", "nats"),
    KeyMetric("overlap/ratio", "top-k overlap", "%"),
    KeyMetric("student/entropy", "entropy of the student", "nats"),
    KeyMetric("length/mean", "completion length", "tokens"),
    KeyMetric("length/truncated", "truncated", "%"),
    KeyMetric("loss", "loss"),
    KeyMetric("validation/loss", "loss, held out", "nats"),
    KeyMetric("time/step", "time a step", "s"),
    KeyMetric("tokens/per_second", "tokens a second"),
)


@dataclass(frozen=True)
class Trend:
    """A metric over one run. start, end: means over the first and the last tenth of the values. path: an SVG path."""

    start: float
    end: float
    path: str


@dataclass(frozen=True)
class MetricComparison:
    """A key metric of every run. trends: one per run, None if the run does not have the metric."""

    metric: KeyMetric
    trends: tuple[Trend | None, ...]

    def value(self, value: float | None) -> str:
        """The value as text."""
        return formats.percent(value) if self.metric.unit == "%" else formats.number(value)

    def change(self, trend: Trend | None, first: Trend | None) -> str:
        """The difference between the end of a run and the end of the first run, with its sign."""
        if trend is None or first is None or trend is first:
            return ""
        difference = trend.end - first.end
        text = formats.points(difference) if self.metric.unit == "%" else formats.number(difference, 2)
        text = text.lstrip(f"+{formats.MINUS}")
        is_zero = not any(digit in text for digit in "123456789")
        return text if is_zero else f"{formats.MINUS if difference < 0 else '+'}{text}"


def compare_key_metrics(runs: Sequence[Run]) -> list[MetricComparison]:
    """The key metrics that at least one run has."""
    comparisons = []
    for metric in KEY_METRICS:
        trends = tuple(trend_of(run.series(metric.key)) for run in runs)
        if any(trends):
            comparisons.append(MetricComparison(metric, trends))
    return comparisons


def trend_of(values: Sequence[float | None]) -> Trend | None:
    """The trend of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    tenth = max(1, len(known) // 10)
    return Trend(fmean(known[:tenth]), fmean(known[-tenth:]), svg_path(known))


def svg_path(values: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> str:
    """The values as the `d` of an SVG path, minimum at the bottom, maximum at the top, 2 units from the edges."""
    if len(values) > width // 2:  # average neighbouring values
        ends = [round(i * len(values) / (width // 2)) for i in range(width // 2 + 1)]
        values = [fmean(values[a:b]) for a, b in itertools.pairwise(ends)]
    low, high = min(values), max(values)
    points = []
    for i, value in enumerate(values):
        x = 2 + (width - 4) * (i / (len(values) - 1) if len(values) > 1 else 0.5)
        y = height - 2 - (height - 4) * ((value - low) / (high - low) if high > low else 0.5)
        points.append(f"{x:.1f} {y:.1f}")
    return "M" + "L".join(points if len(points) > 1 else points * 2)


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted key, the value of each run) for each key, except `out`, whose values differ. A run that sets a section to
    null is ignored in the comparison of the keys of that section.
    """
    flattened = [flatten(yaml.safe_load(run.config)) if run.config else None for run in runs]
    known = [settings for settings in flattened if settings is not None]
    rows = []
    for key in dict.fromkeys(key for settings in known for key in settings):
        parents = [key[:at] for at, letter in enumerate(key) if letter == "."]
        values = {s.get(key, formats.MISSING) for s in known if not any(parent in s for parent in parents)}
        if key != "out" and len(values) > 1:
            rows.append((key, [_value_of(settings, key) for settings in flattened]))
    return rows


def _value_of(settings: Mapping[str, str] | None, key: str) -> str:
    if settings is None:
        return formats.MISSING
    if key not in settings and any(other.startswith(f"{key}.") for other in settings):
        return "set"
    return settings.get(key, formats.MISSING)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as a flat dict with dotted keys, each value as YAML."""
    if isinstance(value, Mapping) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(value, str) and value:
        return {prefix: value}
    return {prefix: yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()}
