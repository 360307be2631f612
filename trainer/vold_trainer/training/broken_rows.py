"""Rows at fault in a run's steps: each is logged once, and a step goes on without their groups."""

import logging
from collections.abc import Iterable, Sequence

from vold_trainer.data import Example
from vold_trainer.data.faults import RowFault
from vold_trainer.rollout.base import Rollout
from vold_trainer.student.models import Student
from vold_trainer.student.readable import for_readable

log = logging.getLogger("vold.rows")

MOST_LOGGED = 100
"""Rows that are named in the log. If there are more, it is not the rows that are at fault."""


class FaultLog:
    """Logs each row at fault once in a run."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()

    def add(self, faults: Iterable[RowFault], step: int) -> None:
        """Log those of the faults of step `step`, counted from 1, that are the first of their rows."""
        for fault in faults:
            if fault.key in self._logged or len(self._logged) > MOST_LOGGED:
                continue
            self._logged.add(fault.key)
            if len(self._logged) > MOST_LOGGED:
                log.warning("more than %d rows are at fault: missing/rows counts the others", MOST_LOGGED)
            else:
                log.warning("step %d goes on without a row at fault, masked: %s", step, fault)


def count_rows(faults: Iterable[RowFault]) -> int:
    """The number of different rows at fault."""
    return len({fault.key for fault in faults})


def dummy_rollout(student: Student, rollouts: Sequence[Rollout], examples: Iterable[Example]) -> Rollout:
    """A rollout for forward passes whose outcome is dropped: one of `rollouts`, else the end of a completion after the
    first of these examples that can be read, else after a text.
    """
    if rollouts:
        return rollouts[0]
    text = Example("", ({"role": "user", "content": "1"},), "")
    for example in (*examples, text):
        readable, _ = for_readable(student.prompt_ids, [example], lambda index, fault: None)
        if readable:
            return Rollout(-1, example, (), (student.eos_ids[0],), "", False)
    return Rollout(-1, text, (), (student.eos_ids[0],), "", False)
