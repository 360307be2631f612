"""The live view of a run in the terminal: a progress bar, the main metrics and their trends, the services' states.

Without a terminal, the view is a line every tenth of the run. A table of first and last values is printed at the end.
A separate thread renders the view once a second, so that a step never waits for it. The tables, whose layout is the
slow part, are laid out again only after new metrics.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vold_trainer.terminal import PacedLines

BLOCKS = "▁▂▃▄▅▆▇█"
TREND_CELLS = 20
HISTORY_LENGTH = 2000
"""Values of a metric that are kept for its trend."""

_WIDE, _NARROW = 104, 46  # columns: from _WIDE on, tables stand side by side; below _NARROW, trends are left out


@dataclass(frozen=True)
class MetricRow:
    """A row of the view: a metric's key, label and unit.

    brief: the metric is also in the lines that are printed without a terminal. alarm: a value other than 0 is
    highlighted.
    """

    key: str
    label: str
    unit: str = ""
    brief: bool = False
    alarm: bool = False


LEARNING_ROWS = (
    MetricRow("reward/mean", "reward", brief=True),
    MetricRow("reward/correct", "right answers", "%"),
    MetricRow("loss", "loss"),
    MetricRow("teacher/gap_correct", "gap to teacher, right", "nats"),
    MetricRow("teacher/gap_wrong", "gap to teacher, wrong", "nats"),
    MetricRow("teacher/k2_correct", "k2, right", "nats²"),
    MetricRow("teacher/k2_wrong", "k2, wrong", "nats²"),
    MetricRow("overlap/ratio", "top-k overlap", "%"),
    MetricRow("student/entropy", "entropy, student", "nats"),
    MetricRow("teacher/entropy", "entropy, teacher", "nats"),
    MetricRow("grad_norm", "gradient norm"),
)
THROUGHPUT_ROWS = (
    MetricRow("length/mean", "length", "tokens", brief=True),
    MetricRow("length/truncated", "truncated", "%"),
    MetricRow("missing/teacher", "missing, teacher", alarm=True),
    MetricRow("missing/verifier", "missing, verifier", alarm=True),
    MetricRow("missing/rows", "rows at fault", alarm=True),
    MetricRow("optim/skipped", "updates skipped", alarm=True),
    MetricRow("sane/alarms", "alarms, teacher", alarm=True),
    MetricRow("time/generate", "generate", "s"),
    MetricRow("time/score_wait", "wait for scores", "s"),
    MetricRow("time/optimise", "optimise", "s"),
    MetricRow("time/step", "whole step", "s"),
    MetricRow("tokens/per_second", "completion tokens", "a second"),
)
TRAIN_TABLES = (LEARNING_ROWS, THROUGHPUT_ROWS)
SFT_TABLES = (
    (
        MetricRow("loss", "loss", "nats", brief=True),
        MetricRow("validation/loss", "loss, held out", "nats", brief=True),
        MetricRow("grad_norm", "gradient norm"),
    ),
    (
        MetricRow("lr", "learning rate"),
        MetricRow("optim/skipped", "updates skipped", alarm=True),
        MetricRow("time/step", "whole step", "s"),
        MetricRow("tokens/per_second", "tokens", "a second"),
        MetricRow("missing/rows", "rows at fault", alarm=True),
    ),
)

ServiceStates = Callable[[], Iterable[tuple[str, str]]]
"""Returns (service, its state in a line) for each service."""


def sparkline(values: Sequence[float], cells: int) -> str:
    """Draw the values as at most `cells` blocks, scaled between minimum and maximum.

    If there are more values than cells, each cell shows the mean of its part of the values. Equal values give the
    lowest block.
    """
    width = max(0, min(cells, len(values)))
    bounds = [cell * len(values) // width for cell in range(width)] + [len(values)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def readable(value: float, unit: str) -> str:
    """Format a value for the view."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit in ("tokens", "a second"):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    text = f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class RenderedLines:
    """Lines that are already laid out."""

    lines: list[list[Segment]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self.lines:
            yield from line
            yield Segment.line()


class Dashboard:
    """The live view of a run, as a context manager.

    tables: the metrics of each table. done, history: the steps and the metrics before the run was resumed.
    service_states: called at each rendering.
    """

    def __init__(
        self,
        label: str,
        total: int,
        tables: Sequence[Sequence[MetricRow]],
        console: Console,
        *,
        done: int = 0,
        history: Iterable[Mapping[str, Any]] = (),
        service_states: ServiceStates = tuple,
    ) -> None:
        self.label = label
        self.total = total
        self.done = done
        self.tables = tables
        self.console = console
        self.service_states = service_states
        self.values: dict[str, list[float]] = {row.key: [] for table in tables for row in table}
        self.lines = PacedLines(total, done)
        self.steps = 0
        self.started = time.monotonic()
        self._progress = self._make_progress()
        self._task = self._progress.add_task(escape(label), total=total, completed=done)
        self._live: Live | None = None
        self._rendered_tables = RenderedLines([])
        self._rendered_for: tuple[int, ...] = ()
        for metrics in history:
            self._record(metrics)

    def _make_progress(self) -> Progress:
        if self.console.width < _NARROW:
            bar = BarColumn(bar_width=max(4, self.console.width - 20))
            return Progress(SpinnerColumn(), MofNCompleteColumn(), bar, console=self.console)
        return Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
        )

    def __enter__(self) -> "Dashboard":
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=1, transient=True,
                vertical_overflow="crop",
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self.steps:
            self.console.print(self.summary())

    def update(self, done: int, **metrics: Any) -> None:
        """Record the metrics of step `done`. Metrics that are not numbers are ignored."""
        self.done = done
        self.steps += 1
        self._record(metrics)
        self._progress.update(self._task, completed=done)
        if not self.console.is_terminal and self.lines.are_due(done):
            brief = [row for row in self._rows_with_values() if row.brief]
            text = "  ".join(f"{row.label} {readable(self.values[row.key][-1], row.unit)}" for row in brief)
            self.console.print(f"{self.label}: {done} of {self.total}  {text}", highlight=False, markup=False)

    def _record(self, metrics: Mapping[str, Any]) -> None:
        for key, values in self.values.items():
            value = metrics.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                values.append(float(value))
                del values[:-HISTORY_LENGTH]

    def _rows_with_values(self) -> list[MetricRow]:
        return [row for table in self.tables for row in table if self.values[row.key]]

    def render(self) -> RenderableType:
        """The view as it is now, no wider and no higher than the terminal."""
        states = list(self.service_states())
        size = (self.console.width, self.console.height - 2 - len(states) - bool(states))
        if self._rendered_for != (self.steps, *size):
            self._rendered_tables = RenderedLines(self.console.render_lines(Group(*self._layout(*size)), pad=False))
            self._rendered_for = (self.steps, *size)
        return Group(self._progress, self._rendered_tables, *([self._services(states)] if states else []))

    def _layout(self, width: int, height: int) -> list[RenderableType]:
        """The tables in `height` lines, side by side if the width allows. Rows at the end are cut first."""
        rows = [[row for row in table if self.values[row.key]] for table in self.tables]
        side_by_side = width >= _WIDE
        lines_left = max(0, height)
        for index, table in enumerate(rows):
            rows[index] = table[:lines_left]
            lines_left -= 0 if side_by_side else len(rows[index])
        tables: list[RenderableType] = [
            self._table(table, width // 2 if side_by_side else width) for table in rows if table
        ]
        if not side_by_side or len(tables) < 2:
            return tables
        grid = Table.grid(expand=True, padding=(0, 2))
        for _ in tables:
            grid.add_column(ratio=1)
        grid.add_row(*tables)
        return [grid]

    def _table(self, rows: Sequence[MetricRow], width: int) -> Table:
        trends = width >= _NARROW
        table = Table.grid(padding=(0, 2 if trends else 1, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=23 if trends else 0)
        table.add_column(justify="right", style="bold", no_wrap=True, min_width=7)
        if trends:
            table.add_column(style="dim", no_wrap=True, min_width=8)
            table.add_column(style="cyan", no_wrap=True)
        for row in rows:
            value = self.values[row.key][-1]
            alarm = "bold yellow" if row.alarm and value else ""
            # In a column that is too narrow, the label is cut and not the value.
            label = Text(f"  {row.label}", alarm)
            label.truncate(25 if trends else max(4, width - 10), overflow="ellipsis")
            cells: list[RenderableType] = [label, Text(readable(value, row.unit), alarm)]
            if trends:
                cells.append("" if row.unit == "%" else row.unit)
                cells.append(sparkline(self.values[row.key][-10 * TREND_CELLS :], min(TREND_CELLS, width - 48)))
            table.add_row(*cells)
        return table

    def _services(self, states: Sequence[tuple[str, str]]) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=10)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for service, state in states:
            table.add_row(Text(f"  {service}"), Text(state))
        return Padding(table, (1, 0, 0, 0))

    def summary(self) -> Table:
        """A table of each metric's mean over the first and the last tenth of the run, and its trend."""
        seconds = time.monotonic() - self.started
        title = f"{self.label}: {self.done} of {self.total} steps, {self.steps} here in {_duration(seconds)}"
        table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
        narrow = self.console.is_terminal and self.console.width < 64
        table.add_column("figure", no_wrap=True)
        table.add_column("first tenth", justify="right", no_wrap=True)
        table.add_column("last tenth", justify="right", style="bold", no_wrap=True)
        if not narrow:
            table.add_column("", style="dim")
            table.add_column("trend", style="cyan", no_wrap=True)
        for row in self._rows_with_values():
            values = self.values[row.key]
            tenth = max(1, len(values) // 10)
            cells = [row.label, *(readable(fmean(part), row.unit) for part in (values[:tenth], values[-tenth:]))]
            if row.alarm and (total := sum(values)):
                cells[0] = f"[yellow]{row.label} ({total:g} in all)"
            if not narrow:
                cells += ["" if row.unit == "%" else row.unit, sparkline(values, TREND_CELLS)]
            table.add_row(*cells)
        return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
