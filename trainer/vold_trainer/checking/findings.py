"""The report of `vold check`: findings by topic, and their table."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text
from vold_client import VoldError

from vold_trainer.errors import VoldTrainerError

Level = Literal["ok", "warning", "error"]
STYLES: dict[Level, tuple[str, str]] = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """topic: the part of the run that was checked. level: "warning" if the run can start, "error" if it cannot."""

    topic: str
    level: Level
    text: str


@dataclass
class CheckReport:
    """The findings of a check, in order."""

    findings: list[Finding] = field(default_factory=list)

    def ok(self, topic: str, text: str) -> None:
        self.findings.append(Finding(topic, "ok", text))

    def warning(self, topic: str, text: str) -> None:
        self.findings.append(Finding(topic, "warning", text))

    def error(self, topic: str, text: str) -> None:
        self.findings.append(Finding(topic, "error", text))

    def of_topic(self, topic: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.topic == topic]

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    @contextmanager
    def catch_errors(self, topic: str) -> Iterator[None]:
        """Record an error that a user can fix as a finding of `topic`, so that the check goes on."""
        try:
            yield
        except (VoldTrainerError, VoldError) as error:
            self.error(topic, str(error))

    def table(self) -> Table:
        table = Table("", "", "", box=None, show_header=False, pad_edge=False, padding=(0, 1))
        previous = ""
        for finding in self.findings:
            mark, style = STYLES[finding.level]
            topic = "" if finding.topic == previous else finding.topic
            previous = finding.topic
            text_style = "" if finding.level == "ok" else style
            table.add_row(Text(mark, style=style), Text(topic, style="bold"), Text(finding.text, style=text_style))
        return table
