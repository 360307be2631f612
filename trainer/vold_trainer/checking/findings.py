"""What a check found: lines of a table, well or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text
from vold_client import VoldError

from vold_trainer.errors import VoldTrainerError

Level = Literal["well", "note", "wrong"]
STYLES = {"well": ("✓", "green"), "note": ("!", "yellow"), "wrong": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """topic: what was looked at. level: "well", "note" (the run will go, but look at it) or "wrong" (it will not)."""

    topic: str
    level: Level
    text: str


@dataclass
class Findings:
    """In the order in which they were found."""

    rows: list[Finding] = field(default_factory=list)

    def well(self, topic: str, text: str) -> None:
        self.rows.append(Finding(topic, "well", text))

    def note(self, topic: str, text: str) -> None:
        self.rows.append(Finding(topic, "note", text))

    def wrong(self, topic: str, text: str) -> None:
        self.rows.append(Finding(topic, "wrong", text))

    def of(self, topic: str) -> list[Finding]:
        return [row for row in self.rows if row.topic == topic]

    @property
    def all_well(self) -> bool:
        """Whether nothing is wrong."""
        return all(row.level != "wrong" for row in self.rows)

    @contextmanager
    def looking_at(self, topic: str) -> Iterator[None]:
        """What a user can mend becomes a finding, and the check goes on."""
        try:
            yield
        except (VoldTrainerError, VoldError) as error:
            self.wrong(topic, str(error))

    def table(self) -> Table:
        table = Table("", "", "", box=None, show_header=False, pad_edge=False, padding=(0, 1))
        last = ""
        for row in self.rows:
            mark, style = STYLES[row.level]
            topic = "" if row.topic == last else row.topic
            last = row.topic
            text_style = "" if row.level == "well" else style
            table.add_row(Text(mark, style=style), Text(topic, style="bold"), Text(row.text, style=text_style))
        return table
