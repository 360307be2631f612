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
    return next(
        (_end_after(student, example) for example in examples if _is_readable(student, example)), _text(student)
    )


def readable_dummy(student: Student, dummy: Rollout) -> Rollout:
    """`dummy`, or the end of a completion after a text if its prompt can no longer be read."""
    return dummy if _is_readable(student, dummy.example) else _text(student)


def _is_readable(student: Student, example: Example) -> bool:
    return bool(for_readable(student.prompt_ids, [example], lambda index, fault: None)[0])


def _text(student: Student) -> Rollout:
    return _end_after(student, Example("", ({"role": "user", "content": "1"},), ""))


def _end_after(student: Student, example: Example) -> Rollout:
    return Rollout(-1, example, (), (student.eos_ids[0],), "", False)
