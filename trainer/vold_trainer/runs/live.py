"""The live view of a run in the terminal: a bar, the key figures with their recent trend, the state of the services.

Where there is no terminal it is a line every tenth of the run. A table of where each figure began and ended closes it.
It is drawn by a thread of its own, once a second, from what the run told it last: a step never waits for it. Tables
are laid out again only when there are new figures, which is what costs.
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

BLOCKS = "▁▂▃▄▅▆▇█"
TREND_CELLS = 20
KEPT = 2000
"""Values of a figure that are remembered: what a trend shows."""

_WIDE, _NARROW = 104, 46  # columns: two tables side by side; no trends


@dataclass(frozen=True)
class Row:
    """One figure: its key among a step's metrics, what it is called, and how its value reads.

    brief: it stands in the lines that replace the view where there is no terminal. alarm: it should be 0.
    """

    key: str
    label: str
    unit: str = ""
    brief: bool = False
    alarm: bool = False


LEARNING = (
    Row("reward/mean", "reward", brief=True),
    Row("reward/correct", "right answers", "%"),
    Row("loss", "loss"),
    Row("teacher/gap_correct", "gap to teacher, right", "nats"),
    Row("teacher/gap_wrong", "gap to teacher, wrong", "nats"),
    Row("teacher/k2_correct", "k2, right", "nats²"),
    Row("teacher/k2_wrong", "k2, wrong", "nats²"),
    Row("overlap/ratio", "top-k overlap", "%"),
    Row("student/entropy", "entropy, student", "nats"),
    Row("teacher/entropy", "entropy, teacher", "nats"),
    Row("grad_norm", "gradient norm"),
)
WORK = (
    Row("length/mean", "length", "tokens", brief=True),
    Row("length/truncated", "truncated", "%"),
    Row("missing/teacher", "missing, teacher", alarm=True),
    Row("missing/verifier", "missing, verifier", alarm=True),
    Row("time/generate", "generate", "s"),
    Row("time/score_wait", "wait for scores", "s"),
    Row("time/optimise", "optimise", "s"),
    Row("time/step", "whole step", "s"),
    Row("tokens/per_second", "completion tokens", "a second"),
)
TRAIN = (LEARNING, WORK)
SFT = (
    (Row("loss", "loss", "nats", brief=True), Row("grad_norm", "gradient norm")),
    (Row("lr", "learning rate"), Row("time/step", "whole step", "s"), Row("tokens/per_second", "tokens", "a second")),
)

State = Callable[[], Iterable[tuple[str, str]]]
"""Lines about the services: (who, how it is)."""


def sparkline(values: Sequence[float], cells: int) -> str:
    """The values as at most `cells` blocks between their least and their most.

    More values than cells: each cell is the mean of its share of them. Values that are all the same are a low line.
    """
    width = max(0, min(cells, len(values)))
    bounds = [cell * len(values) // width for cell in range(width)] + [len(values)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def readable(value: float, unit: str) -> str:
    """A value as the view shows it."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit in ("tokens", "a second"):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    text = f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class Lines:
    """What was laid out before."""

    lines: list[list[Segment]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self.lines:
            yield from line
            yield Segment.line()


class Dashboard:
    """Follows a run. `groups`: the figures, those that belong together in one table. state: asked at every drawing."""

    def __init__(
        self,
        label: str,
        total: int,
        groups: Sequence[Sequence[Row]],
        console: Console,
        *,
        done: int = 0,
        history: Iterable[Mapping[str, Any]] = (),
        state: State = tuple,
    ) -> None:
        self.label = label
        self.total = total
        self.done = done
        self.groups = groups
        self.console = console
        self.state = state
        self.values: dict[str, list[float]] = {row.key: [] for group in groups for row in group}
        self.tenths = int(10 * done / total)
        self.steps = 0
        self.started = time.monotonic()
        self._lasting = self._bar()
        self._task = self._lasting.add_task(escape(label), total=total, completed=done)
        self._live: Live | None = None
        self._tables = Lines([])
        self._drawn_for: tuple[int, ...] = ()
        for row in history:
            self._remember(row)

    def _bar(self) -> Progress:
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

    def update(self, done: int, **figures: Any) -> None:
        """Take the figures of the step that made it `done`; what is no number is passed over."""
        self.done = done
        self.steps += 1
        self._remember(figures)
        self._lasting.update(self._task, completed=done)
        if not self.console.is_terminal and int(10 * done / self.total) > self.tenths:
            self.tenths = int(10 * done / self.total)
            known = [row for row in self._known() if row.brief]
            said = "  ".join(f"{row.label} {readable(self.values[row.key][-1], row.unit)}" for row in known)
            self.console.print(f"{self.label}: {done} of {self.total}  {said}", highlight=False, markup=False)

    def _remember(self, figures: Mapping[str, Any]) -> None:
        for key, values in self.values.items():
            value = figures.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                values.append(float(value))
                del values[:-KEPT]

    def _known(self) -> list[Row]:
        return [row for group in self.groups for row in group if self.values[row.key]]

    def render(self) -> RenderableType:
        """What stands in the terminal now, no wider and no higher than it."""
        state = list(self.state())
        size = (self.console.width, self.console.height - 2 - len(state) - bool(state))
        if self._drawn_for != (self.steps, *size):
            self._tables = Lines(self.console.render_lines(Group(*self._layout(*size)), pad=False))
            self._drawn_for = (self.steps, *size)
        return Group(self._lasting, self._tables, *([self._services(state)] if state else []))

    def _layout(self, width: int, room: int) -> list[RenderableType]:
        """The tables in `room` lines: beside each other where that fits. What comes first matters most."""
        groups = [[row for row in group if self.values[row.key]] for group in self.groups]
        beside = width >= _WIDE
        left = max(0, room)
        for index, group in enumerate(groups):
            groups[index] = group[:left]
            left -= 0 if beside else len(groups[index])
        tables: list[RenderableType] = [
            self._table(group, width // 2 if beside else width) for group in groups if group
        ]
        if not beside or len(tables) < 2:
            return tables
        grid = Table.grid(expand=True, padding=(0, 2))
        for _ in tables:
            grid.add_column(ratio=1)
        grid.add_row(*tables)
        return [grid]

    def _table(self, rows: Sequence[Row], width: int) -> Table:
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
            # a column that is too narrow would cut the value: the name gives way
            label = Text(f"  {row.label}", alarm)
            label.truncate(25 if trends else max(4, width - 10), overflow="ellipsis")
            cells: list[RenderableType] = [label, Text(readable(value, row.unit), alarm)]
            if trends:
                cells.append("" if row.unit == "%" else row.unit)
                cells.append(sparkline(self.values[row.key][-10 * TREND_CELLS :], min(TREND_CELLS, width - 48)))
            table.add_row(*cells)
        return table

    def _services(self, state: Sequence[tuple[str, str]]) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=10)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for who, how in state:
            table.add_row(Text(f"  {who}"), Text(how))
        return Padding(table, (1, 0, 0, 0))

    def summary(self) -> Table:
        """Each figure at the start, at the end, and its way from one to the other."""
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
        for row in self._known():
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
