"""Notices about something that a command waits for."""

import time

from rich.status import Status

from vold_trainer.terminal import console

FIRST_REMINDER = 10.0
"""Seconds until a notice is printed again if there is no terminal. The interval doubles each time."""


class Notice:
    """A line when the wait has lasted for `delay` seconds, then a line that is updated on a terminal, or else a line at
    growing intervals. The texts are markup.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.since = time.monotonic()
        self.printed = False
        self._delay = delay
        self._next_reminder = FIRST_REMINDER
        self._status: Status | None = None

    def seconds(self) -> float:
        """How long the wait has lasted."""
        return time.monotonic() - self.since

    def show(self, first: str, later: str) -> None:
        """Print what is due now. first: the first line. later: every other."""
        if not self.printed:
            if self.seconds() >= self._delay:
                self.printed = True
                print_notice(first)
        elif console.is_terminal and not console.quiet:
            if self._status is None:
                self._status = console.status(later)
                self._status.start()
            self._status.update(later)
        elif self.seconds() >= self._next_reminder:
            self._next_reminder = 2 * self.seconds()
            print_notice(later)

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def print_notice(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
