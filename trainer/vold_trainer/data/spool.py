"""Examples on disk, so that the memory of a command does not grow with its rows."""

import contextlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from vold_trainer.data.examples import Example


class SpooledExamples(Sequence[Example]):
    """Examples in a file without a name, which ends with the process; 8 bytes of memory each.

    An example with images, or with a value that JSON does not give back as it was, stays in memory.
    """

    def __init__(self, examples: Iterable[Example], folder: Path) -> None:
        """folder: where the file is; the system's folder for temporary files if it cannot be there."""
        self._offsets = array("Q", [0])
        self._in_memory: dict[int, Example] = {}
        self._file = _open_unnamed(folder)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._file.close)
            for index, example in enumerate(examples):
                record = _encode(example)
                if record is None:
                    self._in_memory[index] = example
                else:
                    self._file.write(record)
                self._offsets.append(self._offsets[-1] + len(record or b""))
            self._file.flush()
            on_failure.pop_all()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if index in self._in_memory:
            return self._in_memory[index]
        start, end = self._offsets[index], self._offsets[index + 1]
        return _decode(os.pread(self._file.fileno(), end - start, start))

    def close(self) -> None:
        self._file.close()


def _open_unnamed(folder: Path) -> Any:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()


def _encode(example: Example) -> bytes | None:
    """None if the example has to stay in memory."""
    if example.images:
        return None
    fields = [example.id, example.messages, example.reference, example.category, example.meta, example.twin]
    try:
        record = json.dumps([*fields, example.where]).encode()
    except (TypeError, ValueError):
        return None
    return record if _decode(record) == example else None


def _decode(record: bytes) -> Example:
    name, messages, reference, category, meta, twin, where = json.loads(record)
    return Example(
        id=name,
        messages=tuple(messages),
        reference=reference,
        category=category,
        meta=meta,
        twin=None if twin is None else tuple(twin),
        where=where,
    )
