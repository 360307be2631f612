"""A step goes on without the groups of rows at fault."""

from collections.abc import Iterable, Sequence

from vold_trainer.data import Example
from vold_trainer.data.faults import RowFault
from vold_trainer.rollout.base import Rollout
from vold_trainer.student.models import Student
from vold_trainer.student.readable import for_readable


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
