"""Traces as token ids of the student, for the cold start and for distillation on fixed completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vold_packing.marks import TooManyMarksError

from vold_trainer.data import Example
from vold_trainer.data.traces import OF_TRAIN, TraceRow, TraceRules, read_trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.student.lengths import check_trace
from vold_trainer.student.texts import Texts


@dataclass(frozen=True)
class Trace:
    """A prompt and its target completion, as token ids of the student."""

    example: Example
    ids: tuple[int, ...]


def read_traces(path: Path, student: Texts, *, skip_broken: bool = False, rules: TraceRules = OF_TRAIN) -> list[Trace]:
    """Read the traces of `vold traces`, or any JSONL or Parquet with "messages" (or "prompt") and "completion".

    "completion_ids" are used unchanged if the student's tokenizer decodes them to the same text. Otherwise the text is
    tokenized, with the control tokens that it spells as text, and the student's EOS is appended. Raises UsageError that
    names file, line and field of a broken row, unless skip_broken leaves it out.
    """
    require_traces(path)
    traces = read_trace_rows(path, lambda row: make_trace(row, student), rules, skip_broken=skip_broken)
    if not traces:
        raise no_traces(path)
    return traces


def require_traces(path: Path) -> None:
    """Raise UsageError if there is no such file."""
    if not path.is_file():
        raise UsageError(f"traces {str(path)!r} does not exist: create it with `vold traces`")


def no_traces(path: Path) -> UsageError:
    """The error for a file without a trace."""
    return UsageError(f"traces {str(path)!r} is empty: no completion was accepted, or the file is truncated")


def make_trace(row: TraceRow, student: Texts) -> Trace:
    """The trace of a row. Raises UsageError if its prompt cannot be made, or if it is too long."""
    return measured_trace(row, student)[0]


def measured_trace(row: TraceRow, student: Texts) -> tuple[Trace, int]:
    """(the trace of a row, the number of ids of its prompt's text). Raises as `make_trace`."""
    trace = _tokenize(row.example, row.completion, row.ids, student)
    return trace, check_trace(student, row.example, trace.ids)


def _tokenize(example: Example, completion: str, ids: Sequence[int] | None, student: Texts) -> Trace:
    if ids and _decodes_to(student, ids, completion):
        return Trace(example, tuple(ids))
    for end in map(student.tokenizer.convert_ids_to_tokens, student.eos_ids):  # of which it gets one
        if completion.rstrip().endswith(end):
            completion = completion.rstrip().removesuffix(end)
    try:
        return Trace(example, (*student.shield.marks.completion_ids(completion), student.eos_ids[0]))
    except TooManyMarksError as error:
        raise UsageError(f"{example.where}: {error}") from error


def _decodes_to(student: Texts, ids: Sequence[int], text: str) -> bool:
    """Whether the ids are in the student's vocabulary, end with an EOS and decode to the text."""
    if not all(isinstance(token, int) and 0 <= token < student.vocab_size for token in ids):
        return False
    return ids[-1] in student.eos_ids and student.tokenizer.decode(ids, skip_special_tokens=True) == text
