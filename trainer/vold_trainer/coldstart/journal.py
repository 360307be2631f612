"""The answers of an unfinished `vold traces` on disk, so that it can go on: OUT.partial.

The first line says for which settings and rows the answers are. Every further line is about one sample of one row: an
answer, with its trace after a tab; what the verifier says of an answer; or why there is none. Lines are written as they
come, in any order; a last line that breaks off, as a killed command leaves it, is dropped. In memory there are 17 bytes
for each sample. At the end the traces are copied, byte for byte, in the order of rows and samples.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vold_trainer.errors import RunError, UsageError

FORM = 1
"""The version of the file's form."""

MAX_SAMPLES = 1 << 28

MISSING, ANSWERED, ACCEPTED, DROPPED = range(4)
"""What is known of a sample: nothing; its answer, which waits for the verifier; that its trace may be kept; that there
is none.
"""

COPY_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the file. tokens: of the answer; if they are not known its characters, as a negative number. trace: the
    trace as JSON; None if the line has none.
    """

    row: int
    sample: int
    state: int
    reason: str = ""
    said: str = ""
    tokens: int = 0
    trace: bytes | None = None


class Journal:
    """The file, open to go on. rows, samples: how many there are. state_RS: uint8. tokens_RS: int32, as Entry has
    them.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], rows: int, samples: int) -> None:
        if rows * samples > MAX_SAMPLES:
            raise UsageError(f"samples is {samples} of {rows:,} rows, more than {MAX_SAMPLES:,}: set it lower")
        self.path = path
        self.header = dict(header)
        self.state_RS = np.zeros((rows, samples), np.uint8)
        self.tokens_RS = np.zeros((rows, samples), np.int32)
        self._offsets_RS = np.zeros((rows, samples), np.int64)
        self._sizes_RS = np.zeros((rows, samples), np.int32)
        self._file: BinaryIO | None = None
        self._end = 0

    def begin(self) -> None:
        """Write the first line, over what is there."""
        self._file = self.path.open("w+b", buffering=0)
        self._write(json.dumps({"vold_traces": FORM, **self.header}).encode() + b"\n")

    def resume(self) -> Iterator[Entry]:
        """Read the file, and open it to go on. Yields its lines without their traces.

        Raises UsageError for a line that is none of such a file.
        """
        self._file = self.path.open("r+b", buffering=0)
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                if number > 1:
                    try:
                        entry = self._read(line)
                    except (ValueError, TypeError, LookupError) as error:
                        raise UsageError(
                            f"{self.path}:{number} is no line of unfinished traces ({error}): keep the lines before it "
                            f"(head -n {number - 1}), or begin anew with --overwrite"
                        ) from error
                    self._place(entry, self._end, line)
                    yield entry
                self._end += len(line)
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def add(self, entry: Entry) -> None:
        """Write a line. Raises RunError if it cannot be written."""
        head: dict[str, Any] = {"row": entry.row, "sample": entry.sample, "state": entry.state}
        head |= {name: value for name in ("reason", "said", "tokens") if (value := getattr(entry, name))}
        line = json.dumps(head).encode() + (b"" if entry.trace is None else b"\t" + entry.trace) + b"\n"
        offset = self._end
        self._write(line)
        self._place(entry, offset, line)

    def trace(self, row: int, sample: int) -> dict[str, Any]:
        """The trace of an answer."""
        text = os.pread(self._fileno(), int(self._sizes_RS[row, sample]), int(self._offsets_RS[row, sample]))
        trace: dict[str, Any] = json.loads(text)
        return trace

    def sync(self) -> None:
        """Return once what was written is on disk: a machine that fails costs what came since."""
        os.fdatasync(self._fileno())

    def finish(self, out: Path, kept: Iterator[tuple[int, int]]) -> int:
        """Write the traces of these samples to `out`, in their order, and remove the journal. Returns how many."""
        written, buffer = 0, bytearray()
        partial = self.path.with_name(f"{out.name}.sorted")
        try:
            with partial.open("wb") as file:
                for row, sample in kept:
                    size, offset = int(self._sizes_RS[row, sample]), int(self._offsets_RS[row, sample])
                    buffer += os.pread(self._fileno(), size, offset) + b"\n"
                    written += 1
                    if len(buffer) >= COPY_BYTES:
                        file.write(buffer)
                        buffer.clear()
                file.write(buffer)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(out)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._failed(partial, error) from error
        self.close()
        self.path.unlink()
        return written

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, line: bytes) -> Entry:
        head, tab, _ = line.partition(b"\t")
        values = json.loads(head)
        entry = Entry(
            row=int(values["row"]),
            sample=int(values["sample"]),
            state=int(values["state"]),
            reason=str(values.get("reason", "")),
            said=str(values.get("said", "")),
            tokens=int(values.get("tokens", 0)),
            trace=b"" if tab else None,
        )
        rows, samples = self.state_RS.shape
        if not (0 <= entry.row < rows and 0 <= entry.sample < samples and ANSWERED <= entry.state <= DROPPED):
            raise ValueError("row, sample or state")
        return entry

    def _place(self, entry: Entry, offset: int, line: bytes) -> None:
        self.state_RS[entry.row, entry.sample] = entry.state
        if entry.tokens:
            self.tokens_RS[entry.row, entry.sample] = max(-(2**31), min(entry.tokens, 2**31 - 1))
        if entry.trace is not None:
            start = line.index(b"\t") + 1
            self._offsets_RS[entry.row, entry.sample] = offset + start
            self._sizes_RS[entry.row, entry.sample] = len(line) - 1 - start

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        try:
            view = memoryview(line)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise self._failed(self.path, error) from error
        self._end += len(line)

    def _fileno(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def _failed(self, path: Path, error: OSError) -> RunError:
        return RunError(f"{path} cannot be written ({error.strerror}): make room, and go on with --resume")


def partial_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a journal. Raises UsageError if it is none."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 24)
        header = json.loads(line)
        if not line.endswith(b"\n") or header["vold_traces"] != FORM:
            raise ValueError("another form")
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path} is no file of unfinished traces that can be continued: begin anew with --overwrite"
        ) from error
    return {name: value for name, value in header.items() if name != "vold_traces"}


def kept_samples(journal: Journal, keep: str) -> Iterator[tuple[int, int]]:
    """The samples whose traces are kept, in the order of rows and samples. keep: as in the config; the shortest has the
    fewest tokens, and of equal ones the first is kept.
    """
    accepted_RS = journal.state_RS == ACCEPTED
    for row in np.flatnonzero(accepted_RS.any(1)).tolist():
        samples: Sequence[int] = np.flatnonzero(accepted_RS[row]).tolist()
        if keep == "first-correct":
            samples = samples[:1]
        elif keep == "shortest-correct":
            samples = [min(samples, key=lambda sample: (abs(int(journal.tokens_RS[row, sample])), sample))]
        yield from ((row, sample) for sample in samples)
