"""Traces as token ids of the student, for the cold start and for distillation on fixed completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vold_packing.marks import TooManyMarksError

from vold_trainer.data import Example
from vold_trainer.data.traces import OF_TRAIN, TraceRules, read_trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.student.lengths import check_trace
from vold_trainer.student.models import Student


@dataclass(frozen=True)
class Trace:
    """A prompt and its target completion, as token ids of the student."""

    example: Example
    ids: tuple[int, ...]


def read_traces(
    path: Path, student: Student, *, skip_broken: bool = False, rules: TraceRules = OF_TRAIN
) -> list[Trace]:
    """Read the traces of `vold traces`, or any JSONL or Parquet with "messages" (or "prompt") and "completion".

    "completion_ids" are used unchanged if the student's tokenizer decodes them to the same text. Otherwise the text is
    tokenized, with the control tokens that it spells as text, and the student's EOS is appended. Raises UsageError that
    names file, line and field of a broken row, unless skip_broken leaves it out.
    """
    if not path.is_file():
        raise UsageError(f"traces {str(path)!r} does not exist: create it with `vold traces`")
    traces = read_trace_rows(path, lambda row: _make_trace(*row, student), rules, skip_broken=skip_broken)
    if not traces:
        raise UsageError(f"traces {str(path)!r} is empty: no completion was accepted, or the file is truncated")
    return traces


def _make_trace(example: Example, completion: str, ids: Sequence[int] | None, student: Student) -> Trace:
    trace = _tokenize(example, completion, ids, student)
    check_trace(student, example, trace.ids)
    return trace


def _tokenize(example: Example, completion: str, ids: Sequence[int] | None, student: Student) -> Trace:
    if ids and _decodes_to(student, ids, completion):
        return Trace(example, tuple(ids))
    for end in map(student.tokenizer.convert_ids_to_tokens, student.eos_ids):  # of which it gets one
        if completion.rstrip().endswith(end):
            completion = completion.rstrip().removesuffix(end)
    try:
        return Trace(example, (*student.shield.marks.completion_ids(completion), student.eos_ids[0]))
    except TooManyMarksError as error:
        raise UsageError(f"{example.where}: {error}") from error


def _decodes_to(student: Student, ids: Sequence[int], text: str) -> bool:
    """Whether the ids are in the student's vocabulary, end with an EOS and decode to the text."""
    if not all(isinstance(token, int) and 0 <= token < student.vocab_size for token in ids):
        return False
    return ids[-1] in student.eos_ids and student.tokenizer.decode(ids, skip_special_tokens=True) == text
