"""Whether sequences fit into the positions of a student: beyond them it has learned nothing, and some models fail.

The ids of a prompt's text are known before a run. A prompt with images is longer by what the processor makes of these,
which is known when its batch is made (batching.py).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial

from vold_trainer.data import Example
from vold_trainer.data.faults import PromptTooLongError, RowFault
from vold_trainer.errors import UsageError
from vold_trainer.student.models import Student
from vold_trainer.student.readable import for_readable
from vold_trainer.student.texts import Texts
from vold_trainer.terminal import progress

BATCH = 256
"""Prompts tokenized together."""
PROGRESS_FROM = 5000
"""The number of prompts above which progress is shown: they take seconds."""
REMEDY = "Lower rollout.max_tokens, drop them, or set data.skip_broken=true"

OnLong = Callable[[Example, PromptTooLongError], None]


def known_lengths(student: Student, examples: Sequence[Example]) -> list[int]:
    """The number of ids of each prompt; of one with images, those of its text and one for each image."""
    plain, pictured = ([example for example in examples if bool(example.images) == has] for has in (False, True))
    ids = {False: iter(student.prompt_ids(plain) if plain else ()), True: iter(student.text_ids(pictured))}
    return [len(next(ids[bool(example.images)])) for example in examples]


def whole_lengths(student: Student, examples: Sequence[Example]) -> list[int]:
    """The number of ids of each prompt, with all that the processor makes of its images, one prompt at a time."""
    lengths = known_lengths(student, [example for example in examples if not example.images])
    known = iter(lengths)
    return [len(student.prompt_ids([each])[0]) if each.images else next(known) for each in examples]


def measure(
    lengths: Callable[[Sequence[Example]], list[int]], examples: Sequence[Example], on_fault: Callable[[RowFault], None]
) -> list[int]:
    """The result of `lengths` for the examples, batch by batch; 0 for one with which it fails, whose fault on_fault
    receives.
    """
    measured = [0] * len(examples)
    shown = len(examples) > PROGRESS_FROM
    with progress("lengths of prompts", len(examples)) if shown else nullcontext() as live:
        for start in range(0, len(examples), BATCH):
            part = examples[start : start + BATCH]
            readable, own = for_readable(lengths, part, lambda index, fault: on_fault(fault))
            for index, length in zip(readable, own or (), strict=True):
                measured[start + index] = length
            if live is not None:
                live.update(start + len(part))
    return measured


def check_prompts(student: Student, examples: Sequence[Example], max_tokens: int, on_long: OnLong | None) -> None:
    """Give those examples to on_long whose prompts leave no room for `max_tokens` (rollout.max_tokens).

    Without on_long, raises PromptTooLongError that names the first, and how many there are, and UsageError for prompts
    that the student's template or tokenizer refuses. With it, such a row is said to be so by its step.
    """
    faults: list[RowFault] = []
    lengths = measure(partial(known_lengths, student), examples, faults.append)
    if faults and on_long is None:
        raise UsageError(f"{faults[0]}.{_more(len(faults), len(examples))} Mend the row, or set data.skip_broken=true")
    long = find_long(student, zip(examples, lengths, strict=True), max_tokens)
    if long and on_long is None:
        raise PromptTooLongError(f"{describe_long(long, len(examples))} {REMEDY}") from long[0][1]
    for example, error in long:
        assert on_long is not None
        on_long(example, error)


def find_long(
    student: Student, measured: Iterable[tuple[Example, int]], max_tokens: int
) -> list[tuple[Example, PromptTooLongError]]:
    """Those of the examples whose prompts, of so many ids, leave no room for `max_tokens`; and what to say of each."""
    limit = student.max_positions
    return [
        (example, student.too_long(length, f"rollout.max_tokens {max_tokens}"))
        for example, length in measured
        if limit is not None and length + max_tokens > limit
    ]


def describe_long(long: Sequence[tuple[Example, PromptTooLongError]], rows: int) -> str:
    """The first of the prompts that are too long, and how many there are among `rows`. REMEDY may follow."""
    return f"{RowFault.of(*long[0])}.{_more(len(long), rows)}"


def _more(count: int, rows: int) -> str:
    return f" So are {count - 1:,} more of {rows:,} rows." if count > 1 else ""


def check_trace(student: Texts, example: Example, ids: Sequence[int]) -> int:
    """The number of ids of the prompt's text, with one for each image. Raises UsageError if the prompt cannot be made,
    or does not fit together with the completion.
    """
    limit = student.max_positions
    try:
        (prompt,) = student.text_ids([example])
    except Exception as error:  # a chat template may raise any exception
        raise UsageError(str(RowFault.of(example, error))) from error
    if limit is not None and len(prompt) + len(ids) > limit:
        long = student.too_long(len(prompt), f"the {len(ids):,} of its completion")
        raise PromptTooLongError(str(RowFault.of(example, long))) from long
    return len(prompt)
