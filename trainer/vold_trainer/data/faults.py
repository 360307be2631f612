"""Rows that turn out to be unusable in the middle of a run: what is said of them, and the error where they stop it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vold_trainer.data.examples import Example
from vold_trainer.errors import RunError, UsageError
from vold_trainer.sentences import without_index

FaultKind = Literal["unreadable", "too long", "refused"]


class PromptTooLongError(UsageError):
    """A prompt leaves no room for a completion."""


@dataclass(frozen=True)
class RowFault:
    """A row at fault. where: its place, FILE:LINE, or "" if it has none. id: the example's. reason: why the row cannot
    be used. kind: unreadable (its images, its chat template, its tokens), too long, or refused by a service.
    """

    where: str
    id: str
    reason: str
    kind: FaultKind = "unreadable"

    @classmethod
    def of(cls, example: Example, error: BaseException, *, refused: bool = False) -> "RowFault":
        """The fault of an example for which an error was raised. refused: by a service."""
        kind: FaultKind = "refused" if refused else "unreadable"
        if isinstance(error, PromptTooLongError):
            kind = "too long"
        reason = " ".join(without_index(str(error)).split()) or repr(error)
        for place in (example.where, f"row {example.id!r}", f"example {example.id!r}"):
            reason = reason.removeprefix(f"{place}: ")
        return cls(example.where, example.id, reason, kind)

    @property
    def key(self) -> tuple[str, str]:
        """The same for all faults of a row."""
        return self.where, self.id

    def __str__(self) -> str:
        name = f"row {self.id!r}"  # a row without an id has its place for one
        return ": ".join(
            [*([self.where] if self.where else []), *([name] if self.id != self.where else []), self.reason]
        )


OnFault = Callable[[int, RowFault], None]
"""Receives the index of an example that cannot be used, and its fault."""


class RowError(RunError):
    """A row at fault stops the run."""

    def __init__(self, fault: RowFault, key: str = "data.skip_broken") -> None:
        """key: the config key that decides whether the run goes on."""
        super().__init__(f"{fault}. Mend the row, or set {key}=true")
        self.fault = fault
