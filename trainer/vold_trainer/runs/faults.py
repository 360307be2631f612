"""The log of a run's rows at fault."""

import logging
from collections.abc import Iterable

from vold_trainer.data.faults import RowFault

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
