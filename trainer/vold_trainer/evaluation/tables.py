"""The results of an evaluation as tables for the terminal, one row per metric."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from vold_trainer.evaluation.results import SetResult

MetricRow = tuple[str, float, Sequence[float] | None, int | None]
"""Name, value, 95 % interval and number of problems; None where a metric has no interval or number."""


def result_table(results: Mapping[str, SetResult], title: str) -> Table:
    """The greedy accuracy, the metrics of sampled answers and the benchmark's own metrics of every set.

    errors: answers of the set without a verdict. cut off: share of answers that reached max_tokens.
    """
    table = _table(title, "set", "figure", numbers=("value", "95 %", "n", "errors", "cut off"))
    for label, result in results.items():
        set_cells = (label, str(result.errors), _percent(result.truncated))
        for name, value, interval, n in _metric_rows(result):
            set_label, errors, truncated = set_cells
            table.add_row(set_label, name, *_cells(value, interval, n), errors, truncated)
            set_cells = ("", "", "")
        table.add_section()
    return table


def category_table(results: Mapping[str, SetResult]) -> Table | None:
    """The greedy accuracy and mean@n of every category, and the greedy accuracy of every facet that an adapter defines;
    None if there are neither.
    """
    table = _table("by category", "set", "category", "figure", numbers=("value", "95 %", "n"))
    for label, result in results.items():
        for category, name, value, interval, n in _category_rows(result):
            table.add_row(label, category, name, *_cells(value, interval, n))
            label = ""
        table.add_section()
    return table if table.row_count else None


def _metric_rows(result: SetResult) -> Iterator[MetricRow]:
    if result.n or result.sampled is None:
        yield "greedy", result.accuracy, result.interval, result.n
    sampled = result.sampled or {}
    for name, metric in sampled.items():
        if "@" in name:
            yield name, metric["value"], metric["interval"], metric["n"]
    for name, metric in result.aggregate.items():
        yield name, metric["value"], metric["interval"], metric["n"]
    for name, value in sampled.get("aggregate", {}).items():
        yield f"{name}, {sampled['n']} passes", value, None, None


def _category_rows(result: SetResult) -> Iterator[tuple[str, str, float, Sequence[float], int]]:
    sampled = (result.sampled or {}).get("by_category", {})
    for category in sorted({*result.by_category, *sampled}):
        if accuracy := result.by_category.get(category):
            yield category, "greedy", accuracy["accuracy"], accuracy["interval"], accuracy["n"]
        for name, metric in sampled.get(category, {}).items():
            if name.startswith("mean@"):
                yield category, name, metric["value"], metric["interval"], metric["n"]
    for facet, values in result.by_facet.items():
        for name, accuracy in values.items():
            yield f"{facet}: {name}", "greedy", accuracy["accuracy"], accuracy["interval"], accuracy["n"]


def _table(title: str, *texts: str, numbers: Sequence[str]) -> Table:
    table = Table(title=title)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(value: float, interval: Sequence[float] | None, n: int | None) -> tuple[str, str, str]:
    return _percent(value), _interval(interval), "" if n is None else str(n)


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return ""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
