"""Terminal output of a running command: the console for notes, and progress bars with a line of figures."""

import contextlib
from collections.abc import Iterator

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
    """A bar with a label, a count, the time left and a line of figures; without a terminal, a line every tenth."""
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
        yield ProgressLine(bar, bar.add_task(label, total=total, figures=""))


class ProgressLine:
    """A progress bar and its figures."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar = bar
        self.task = task
        self.tenths = 0

    def update(self, done: int, **figures: float | str | None) -> None:
        """Set the number of units done and the figures of the line."""
        line = "  ".join(
            f"{name} {value if isinstance(value, str) else f'{value:.3g}'}"
            for name, value in figures.items()
            if value is not None
        )
        task = self.bar.tasks[self.task]
        self.bar.update(self.task, completed=done, figures=line or task.fields["figures"])
        total = task.total or 1
        if not console.is_terminal and int(10 * done / total) > self.tenths:
            self.tenths = int(10 * done / total)
            console.print(f"{task.description}: {done} of {int(total)}  {task.fields['figures']}", highlight=False)
