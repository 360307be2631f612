"""Work on several examples, in which an example that fails costs itself alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from vold_trainer.data import Example
from vold_trainer.data.faults import OnFault, RowError, RowFault
from vold_trainer.student.batching import Batch, make_batch
from vold_trainer.student.models import Student

T = TypeVar("T")

NO_FAULT_OF_A_ROW = (MemoryError, torch.OutOfMemoryError)


def for_readable(
    work: Callable[[Sequence[Example]], T], examples: Sequence[Example], on_fault: OnFault | None = None
) -> tuple[list[int], T | None]:
    """(the indices of the examples that `work` can take, the result of `work` for these; None if there are none).

    If `work` fails for all examples together, it is tried with each alone: a chat template, an image processor and a
    tokenizer may raise any exception, and none names the example. on_fault: receives the examples with which it fails.

    Raises RowError for the first of them without on_fault; the error of `work` if it fails with no example alone, or
    for want of memory.
    """
    try:
        return list(range(len(examples))), work(examples)
    except NO_FAULT_OF_A_ROW:
        raise
    except Exception:
        readable = []
        for index, example in enumerate(examples):
            try:
                work([example])
            except NO_FAULT_OF_A_ROW:
                raise
            except Exception as error:
                fault = RowFault.of(example, error)
                if on_fault is None:
                    raise RowError(fault) from error
                on_fault(index, fault)
            else:
                readable.append(index)
        if len(readable) == len(examples):
            raise
    return readable, work([examples[index] for index in readable]) if readable else None


def make_readable_batch(
    student: Student,
    examples: Sequence[Example],
    completions: Sequence[Sequence[int]],
    on_fault: OnFault,
    *,
    device: torch.device | None = None,
    share: bool = True,
) -> tuple[list[int], Batch | None]:
    """(the indices of the examples that can be read, `make_batch` of these; None if there are none). An image may have
    gone since it was read before, or make a prompt too long.

    Raises the error of `make_batch` if each example can be read.
    """
    try:
        return list(range(len(examples))), make_batch(student, examples, completions, device=device, share=share)
    except NO_FAULT_OF_A_ROW:
        raise
    except Exception:
        distinct = list({id(example): example for example in examples}.values())
        longest = {id(example): max(ids, key=len) for example, ids in _grouped(examples, completions)}
        faults: dict[int, RowFault] = {}
        for_readable(
            lambda part: make_batch(student, part, [longest[id(example)] for example in part]),
            distinct,
            lambda index, fault: faults.update({id(distinct[index]): fault}),
        )
        if not faults:
            raise
    readable = []
    for index, example in enumerate(examples):
        if id(example) in faults:
            on_fault(index, faults[id(example)])
        else:
            readable.append(index)
    if not readable:
        return [], None
    batch = make_batch(
        student, [examples[i] for i in readable], [completions[i] for i in readable], device=device, share=share
    )
    return readable, batch


def _grouped(
    examples: Sequence[Example], completions: Sequence[Sequence[int]]
) -> Iterator[tuple[Example, list[Sequence[int]]]]:
    """Each example with its completions."""
    groups: dict[int, tuple[Example, list[Sequence[int]]]] = {}
    for example, ids in zip(examples, completions, strict=True):
        groups.setdefault(id(example), (example, []))[1].append(ids)
    yield from groups.values()


def check_images(examples: Sequence[Example]) -> None:
    """Decode the images of these examples. Raises the error of the first that cannot be decoded."""
    for example in examples:
        for _ in example.images:
            pass
