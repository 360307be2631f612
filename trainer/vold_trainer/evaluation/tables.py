"""An evaluation's figures as tables for the terminal: a row a figure, so that any number of them fits."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from vold_trainer.evaluation.results import SetResult

Figure = tuple[str, float, Sequence[float] | None, int | None]
"""Name, value, 95 % interval and the number of problems behind it, where it has those."""


def result_table(results: Mapping[str, SetResult], title: str) -> Table:
    """Every set's greedy accuracy, what was sampled, and the benchmark's own figures.

    errors: answers of the whole set that nobody could judge. cut off: the share that ran into max_tokens.
    """
    table = _table(title, "set", "figure", numbers=("value", "95 %", "n", "errors", "cut off"))
    for label, found in results.items():
        ends = (label, str(found.errors), _percent(found.truncated))
        for name, value, interval, n in _figures(found):
            first, errors, cut = ends
            table.add_row(first, name, *_cells(value, interval, n), errors, cut)
            ends = ("", "", "")
        table.add_section()
    return table


def category_table(results: Mapping[str, SetResult]) -> Table | None:
    """Every category's greedy accuracy and the samples' mean, and those of the further names that an adapter gives;
    None where there are no categories.
    """
    table = _table("by category", "set", "category", "figure", numbers=("value", "95 %", "n"))
    for label, found in results.items():
        for category, name, value, interval, n in _categories(found):
            table.add_row(label, category, name, *_cells(value, interval, n))
            label = ""
        table.add_section()
    return table if table.row_count else None


def _figures(found: SetResult) -> Iterator[Figure]:
    if found.n or found.sampled is None:
        yield "greedy", found.accuracy, found.interval, found.n
    sampled = found.sampled or {}
    for name, figure in sampled.items():
        if "@" in name:
            yield name, figure["value"], figure["interval"], figure["n"]
    for name, figure in found.aggregate.items():
        yield name, figure["value"], figure["interval"], figure["n"]
    for name, value in sampled.get("aggregate", {}).items():
        yield f"{name}, {sampled['n']} passes", value, None, None


def _categories(found: SetResult) -> Iterator[tuple[str, str, float, Sequence[float], int]]:
    sampled = (found.sampled or {}).get("by_category", {})
    for category in sorted({*found.by_category, *sampled}):
        if share := found.by_category.get(category):
            yield category, "greedy", share["accuracy"], share["interval"], share["n"]
        for name, figure in sampled.get(category, {}).items():
            if name.startswith("mean@"):
                yield category, name, figure["value"], figure["interval"], figure["n"]
    for facet, values in found.by_facet.items():
        for name, share in values.items():
            yield f"{facet}: {name}", "greedy", share["accuracy"], share["interval"], share["n"]


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
