"""Traces that cannot be read in the middle of a run: they are left out of their steps, up to a limit."""

from collections.abc import Sequence

import torch

from vold_trainer.config import SftConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.errors import RunError
from vold_trainer.processes.ranks import Ranks
from vold_trainer.runs.faults import FaultLog
from vold_trainer.student.batching import Batch, make_batch
from vold_trainer.student.models import Student
from vold_trainer.student.readable import make_readable_batch


class BrokenTraces:
    """Finds the traces of a step that cannot be read. step: steps done. in_a_row: consecutive steps with too many such
    traces.
    """

    def __init__(self, config: SftConfig, student: Student, ranks: Ranks, *, step: int, in_a_row: int = 0) -> None:
        self.config = config
        self.student = student
        self.ranks = ranks
        self.step = step
        self.in_a_row = in_a_row
        self.log = FaultLog()
        self._faults: dict[int, RowFault] = {}
        self._reason = ""

    def batch(
        self,
        examples: Sequence[Example],
        ids: Sequence[Sequence[int]],
        places: Sequence[int],
        *,
        device: torch.device,
        share: bool,
    ) -> tuple[Batch, bool]:
        """(the batch of those that can be read, True); or, if there are none, (a batch for a pass without weight,
        False). places: of the traces in the step. Raises RowError if a trace at fault stops the run.
        """

        def on_fault(index: int, fault: RowFault) -> None:
            if self.config.skip_broken is False:
                raise RowError(fault, "skip_broken")
            self._faults[places[index]] = fault

        _, batch = make_readable_batch(self.student, examples, ids, on_fault, device=device, share=share)
        if batch is not None:
            return batch, True
        return text_batch(self.student, device=device, share=share), False

    def end_step(self) -> set[int]:
        """The places of the traces that could not be read since the last step, on all processes. Logs each once."""
        self.step += 1
        faults = {place: fault for part in self.ranks.gather(self._faults) for place, fault in part.items()}
        self._faults = {}
        self.log.add(faults.values(), self.step)
        share = len(faults) / self.config.batch
        self.in_a_row = self.in_a_row + 1 if share > self.config.missing.max_share else 0
        self._reason = f"{share:.0%} of the traces of a step could not be read" + "".join(
            f", such as {fault}" for fault in list(faults.values())[:1]
        )
        return set(faults)

    def check(self) -> None:
        """Raise RunError after `missing.patience` consecutive steps with more than `missing.max_share` of faults."""
        if self.in_a_row >= self.config.missing.patience:
            raise RunError(
                f"{self._reason}, for {self.in_a_row} steps in a row; missing.max_share is "
                f"{self.config.missing.max_share:.0%}. Mend the traces"
            )


def text_batch(student: Student, *, device: torch.device, share: bool) -> Batch:
    """A batch that any student can read, for a pass without weight."""
    text = Example("", ({"role": "user", "content": "1"},), "")
    return make_batch(student, [text], [student.eos_ids[:1]], device=device, share=share)
