"""Terminal output of a running command: the console for notes, and progress bars with a line of figures."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)

LINE_SECONDS = 10.0


def silence() -> None:
    """Print no bars and no notes from now on: for worker processes."""
    console.quiet = True


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Print no bars and no notes inside this block."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator["ProgressLine"]:
    """A bar with a label, a count, the time left and a line of figures; without a terminal, lines (PacedLines)."""
    with progress_lines({label: total}) as lines:
        yield lines[label]


@contextlib.contextmanager
def progress_lines(totals: Mapping[str, int]) -> Iterator[dict[str, "ProgressLine"]]:
    """One bar below the other, as `progress` has it, for work that goes on at the same time. totals: by label."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[figures]}"),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )
    with bar:
        yield {
            label: ProgressLine(bar, bar.add_task(label, total=total, figures="")) for label, total in totals.items()
        }


class PacedLines:
    """When a line says how far work has come, where no terminal shows a bar: at each tenth, and not within
    LINE_SECONDS of the last line or of the beginning.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self._tenths = 10 * done // total
        self._last = time.monotonic()

    def are_due(self, done: int) -> bool:
        """Whether to print a line now, which this call counts as printed."""
        tenths, now = 10 * done // self.total, time.monotonic()
        if tenths <= self._tenths or now - self._last < LINE_SECONDS:
            return False
        self._tenths, self._last = tenths, now
        return True


class ProgressLine:
    """A progress bar and its figures."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar = bar
        self.task = task
        self.lines = PacedLines(int(bar.tasks[task].total or 1))

    def update(self, done: int, **figures: float | str | None) -> None:
        """Set the number of units done and the figures of the line."""
        line = "  ".join(
            f"{name} {value if isinstance(value, str) else f'{value:.3g}'}"
            for name, value in figures.items()
            if value is not None
        )
        task = self.bar.tasks[self.task]
        self.bar.update(self.task, completed=done, figures=line or task.fields["figures"])
        if not console.is_terminal and self.lines.are_due(done):
            text = f"{task.description}: {done} of {self.lines.total}  {task.fields['figures']}"
            console.print(text.rstrip(), highlight=False)
