"""What a process says of its share of a step, and the shares of all processes as one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vold_trainer.data.faults import RowFault
from vold_trainer.scoring.sanity import Figures
from vold_trainer.sentences import Sentences
from vold_trainer.training.alarms import join_figures
from vold_trainer.training.token_log import CompletionStats


@dataclass
class StepSummary:
    """What each process reports to the others about its share of a step.

    absent: completions that are missing because of rows at fault.
    """

    stats: CompletionStats
    missing: Counter[str]
    generate_seconds: float
    wait_seconds: float
    sentences: Sentences
    sanity: dict[str, Figures]
    absent: int = 0
    faults: tuple[RowFault, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence["StepSummary"]) -> "StepSummary":
        """The summaries of several processes as one. The seconds are those of the slowest process."""
        sentences = Sentences()
        for part in parts:
            sentences.update(part.sentences)
        return cls(
            CompletionStats.joined([part.stats for part in parts]),
            sum((part.missing for part in parts), Counter()),
            max(part.generate_seconds for part in parts),
            max(part.wait_seconds for part in parts),
            sentences,
            join_figures([part.sanity for part in parts]),
            sum(part.absent for part in parts),
            tuple(fault for part in parts for fault in part.faults),
        )
