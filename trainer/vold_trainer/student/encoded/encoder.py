"""Rows of a file of traces as token ids: what one process does with a part of the file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vold_trainer.data.digest import digest_record
from vold_trainer.data.files import StoredRow, read_row
from vold_trainer.data.parsing import Parser
from vold_trainer.data.traces import TraceReader, TraceRules
from vold_trainer.errors import UsageError
from vold_trainer.student.encoded import rows
from vold_trainer.student.texts import Texts
from vold_trainer.student.traces import measured_trace


@dataclass(frozen=True)
class EncodedRow:
    """ids: of the completion, int32. prompt: the number of ids of the prompt's text. name: the example's id, empty if
    it has none. packed: the example. record: what the digest of the traces is made of. images: their number.
    """

    ids: bytes
    prompt: int
    name: str
    packed: bytes
    record: bytes
    images: int


@dataclass(frozen=True)
class Fault:
    """What is said of a broken row. said: with {path} at the beginning for the file's name."""

    said: str

    @classmethod
    def of(cls, error: UsageError, path: Path) -> "Fault":
        said = str(error)
        return cls("{path}" + said.removeprefix(str(path)) if said.startswith(str(path)) else said)

    def text(self, path: Path) -> str:
        return str(path) + self.said.removeprefix("{path}") if self.said.startswith("{path}") else self.said


@dataclass
class EncodedPart:
    """outcomes: of a part's rows, in their order. seen, read: columns that rows have, and of these the ones that fields
    are read from.
    """

    outcomes: list[EncodedRow | Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)


class Encoder:
    """Encodes parts of the file `path` for a student."""

    def __init__(self, texts: Texts, path: Path, rules: TraceRules) -> None:
        self.texts = texts
        self.path = path
        self._reader = TraceReader(rules)
        self._parser = Parser()

    def encode(self, part: Sequence[StoredRow]) -> EncodedPart:
        """Encode rows. A broken one is a Fault."""
        encoded = EncodedPart()
        for stored in part:
            try:
                encoded.outcomes.append(self._row(stored))
            except UsageError as error:
                encoded.outcomes.append(Fault.of(error, self.path))
        encoded.seen = list(self._reader.seen)
        encoded.read = self._reader.columns.seen
        return encoded

    def _row(self, stored: StoredRow) -> EncodedRow:
        trace, prompt = measured_trace(self._reader.read(read_row(stored, self.path, self._parser)), self.texts)
        example = trace.example
        return EncodedRow(
            ids=np.asarray(trace.ids, "<i4").tobytes(),
            prompt=prompt,
            name="" if example.id == example.where else example.id,
            packed=rows.pack(example, self.path),
            record=digest_record(example, trace.ids),
            images=len(example.images),
        )
