"""Traces that cannot be read in the middle of a run: they are left out of their steps, up to a limit."""

from collections.abc import Sequence
from functools import partial

from vold_trainer.config import SftConfig
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.errors import RunError
from vold_trainer.processes.ranks import Ranks
from vold_trainer.runs.faults import FaultLog
from vold_trainer.student.models import Student
from vold_trainer.student.readable import check_prompts, for_readable
from vold_trainer.student.traces import Trace


class BrokenTraces:
    """Finds the traces of a step that cannot be read. in_a_row: consecutive steps with too many of them."""

    def __init__(self, config: SftConfig, student: Student, ranks: Ranks, in_a_row: int = 0) -> None:
        self.config = config
        self.student = student
        self.ranks = ranks
        self.in_a_row = in_a_row
        self.log = FaultLog()
        self._reason = ""

    def find(self, traces: Sequence[Trace]) -> dict[int, RowFault]:
        """The faults among this process's share of a step's traces, by index. Raises RowError if one stops the run."""
        own = self.ranks.share(len(traces))
        faults: dict[int, RowFault] = {}

        def on_fault(index: int, fault: RowFault) -> None:
            if self.config.skip_broken is False:
                raise RowError(fault, "skip_broken")
            faults[own[index]] = fault

        for_readable(partial(check_prompts, self.student), [traces[index].example for index in own], on_fault)
        return faults

    def join(self, step: int, own: dict[int, RowFault]) -> dict[int, RowFault]:
        """The faults of all processes. Logs those of rows that had none before. step: counted from 1."""
        faults = {index: fault for part in self.ranks.gather(own) for index, fault in part.items()}
        self.log.add(faults.values(), step)
        share = len(faults) / self.config.batch
        self.in_a_row = self.in_a_row + 1 if share > self.config.missing.max_share else 0
        self._reason = f"{share:.0%} of the traces of a step could not be read" + "".join(
            f", such as {fault}" for fault in list(faults.values())[:1]
        )
        return faults

    def check(self) -> None:
        """Raise RunError after `missing.patience` consecutive steps with more than `missing.max_share` of faults."""
        if self.in_a_row >= self.config.missing.patience:
            raise RunError(
                f"{self._reason}, for {self.in_a_row} steps in a row; missing.max_share is "
                f"{self.config.missing.max_share:.0%}. Mend the traces"
            )
