"""Traces as the student's token ids: what the cold start learns, and a distillation on fixed completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vold_trainer.data import Example
from vold_trainer.data.traces import trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.student.models import Student


@dataclass(frozen=True)
class Trace:
    """A prompt and the completion to learn, as the student's token ids."""

    example: Example
    ids: tuple[int, ...]


def read_traces(path: Path, student: Student) -> list[Trace]:
    """The traces of `vold traces`, or any JSONL or Parquet with "messages" (or "prompt") and "completion".

    "completion_ids" are used as they are where the student's tokenizer reads them as the same text; otherwise the
    text is tokenized and ended with the student's EOS. Raises UsageError that names file, line and field.
    """
    if not path.is_file():
        raise UsageError(f"traces {str(path)!r} does not exist: make it with `vold traces`")
    traces = [_trace(example, completion, ids, student) for example, completion, ids in trace_rows(path)]
    if not traces:
        raise UsageError(f"traces {str(path)!r} is empty: no completion was kept, or the file was cut off")
    return traces


def _trace(example: Example, completion: str, ids: Sequence[int] | None, student: Student) -> Trace:
    if ids and _reads_as(student, ids, completion):
        return Trace(example, tuple(ids))
    ids = student.tokenizer(completion, add_special_tokens=False)["input_ids"]
    return Trace(example, (*ids, student.eos_ids[0]))


def _reads_as(student: Student, ids: Sequence[int], text: str) -> bool:
    if not all(isinstance(token, int) and 0 <= token < student.vocab_size for token in ids):
        return False
    return ids[-1] in student.eos_ids and student.tokenizer.decode(ids, skip_special_tokens=True) == text
