"""An evaluation's figures as a table for the terminal: a row a figure, so that any number of them fits."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from vold_trainer.evaluate.results import SetResult

Figure = tuple[str, str, float, Sequence[float] | None, int | None]
"""Category, name, value, 95 % interval and the number of problems behind it, where it has those."""


def result_table(results: Mapping[str, SetResult], title: str, *, categories: bool = False) -> Table:
    """Every set's greedy accuracy, what was sampled and the benchmark's own figures; by category too, where asked for.

    errors: answers of the whole set that nobody could judge. cut off: the share that ran into max_tokens.
    """
    table = Table(title=title)
    names = ("set", *(["category"] if categories else []), "figure")
    for name in (*names, "value", "95 %", "n", "errors", "cut off"):
        table.add_column(name, justify="left" if name in names else "right", no_wrap=name != "category")
    for label, found in results.items():
        ends = (label, str(found.errors), _percent(found.truncated))
        for category, name, value, interval, n in [*_figures(found), *(_categories(found) if categories else ())]:
            first, errors, cut = ends
            cells = (_percent(value), _interval(interval), "" if n is None else str(n), errors, cut)
            table.add_row(first, *([category] if categories else []), name, *cells)
            ends = ("", "", "")
        table.add_section()
    return table


def _figures(found: SetResult) -> Iterator[Figure]:
    if found.n or found.sampled is None:
        yield "", "greedy", found.accuracy, found.interval, found.n
    sampled = found.sampled or {}
    for name, figure in sampled.items():
        if "@" in name:
            yield "", name, figure["value"], figure["interval"], figure["n"]
    for name, figure in found.aggregate.items():
        yield "", name, figure["value"], figure["interval"], figure["n"]
    for name, value in sampled.get("aggregate", {}).items():
        yield "", f"{name}, mean of {sampled['n']} passes", value, None, None


def _categories(found: SetResult) -> Iterator[Figure]:
    sampled = (found.sampled or {}).get("by_category", {})
    for name in sorted({*found.by_category, *sampled}):
        if share := found.by_category.get(name):
            yield name, "greedy", share["accuracy"], share["interval"], share["n"]
        for figure_name, figure in sampled.get(name, {}).items():
            if figure_name.startswith("mean@"):
                yield name, figure_name, figure["value"], figure["interval"], figure["n"]
    for facet, values in found.by_facet.items():
        for name, share in values.items():
            yield f"{facet}: {name}", "greedy", share["accuracy"], share["interval"], share["n"]


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return ""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
