"""A folder of encoded traces: arrays that are mapped into memory, and bytes at offsets that are arrays too.

    ids.bin, ids.at     int32 token ids of all completions, one after the other; int64 where each begins, and the end
    rows.bin, rows.at   the examples (rows.py)
    keys.bin, keys.at   the unique keys of the rows (data/keys.py), in UTF-8
    prompts.bin         int32 numbers of ids of the prompts' texts
    about.json          what they are of, and the size of each file

A mapped file is memory of the file's, which the machine's processes share and the kernel takes back when it has to. The
folder is written under another name, flushed to the disk and renamed, so that one that a killed process left is never
read.
"""

import contextlib
import functools
import json
import os
import re
import shutil
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from vold_trainer.data.digest import Digest, digest
from vold_trainer.data.keys import unique_names
from vold_trainer.student.encoded import rows
from vold_trainer.student.encoded.encoder import EncodedRow, Fault
from vold_trainer.student.traces import Trace

FORMAT = 1
"""Another layout of the files, or another way to make ids, is another number: folders of the old one are left alone."""

_DATA = {"ids": 4, "rows": 1, "keys": 1}
"""The files with data of each row, and the bytes of an item."""
_NUMBERED = re.compile(r"(.*)#\d+", re.DOTALL)


class Blob:
    """Data of each row, in a file and its offsets."""

    def __init__(self, folder: Path, name: str, kind: str) -> None:
        self._data: NDArray[Any] = np.memmap(folder / f"{name}.bin", kind, mode="r")
        self._at: NDArray[Any] = np.memmap(folder / f"{name}.at", "<i8", mode="r")

    def __len__(self) -> int:
        return len(self._at) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self._data[self._at[row] : self._at[row + 1]]

    def lengths(self) -> NDArray[Any]:
        """The number of items of each row, int32."""
        return np.diff(self._at).astype(np.int32)


class Keys(Sequence[str]):
    """The keys of traces, read when they are asked for."""

    def __init__(self, blob: Blob, chosen: NDArray[np.int32]) -> None:
        self._blob = blob
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Keys": ...
    def __getitem__(self, index: int | slice) -> "str | Keys":
        if isinstance(index, slice):
            return Keys(self._blob, self._chosen[index])
        return self._blob[int(self._chosen[index])].tobytes().decode()


class EncodedTraces(Sequence[Trace]):
    """Traces of an encoded folder, each made when it is asked for. path: the file that they are of, for the names of
    rows and the paths of images. chosen: the rows that are among them; None: all.
    """

    def __init__(self, folder: Path, path: Path, chosen: NDArray[np.int32] | None = None) -> None:
        self.folder = folder
        self.path = path
        self.about = read_about(folder)
        self._ids, self._rows = Blob(folder, "ids", "<i4"), Blob(folder, "rows", "u1")
        self._keys = Blob(folder, "keys", "u1")
        self._chosen = np.arange(len(self._ids), dtype=np.int32) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> "EncodedTraces": ...
    def __getitem__(self, index: int | slice) -> "Trace | EncodedTraces":
        if isinstance(index, slice):
            return EncodedTraces(self.folder, self.path, self._chosen[index])
        row = int(self._chosen[index])
        return Trace(rows.unpack(self.packed(index), self.path), tuple(self._ids[row].tolist()))

    def packed(self, index: int) -> bytes:
        """The bytes of a trace's example."""
        return self._rows[int(self._chosen[index])].tobytes()

    def select(self, mask: NDArray[np.bool_]) -> "EncodedTraces":
        """Those at which the mask is true, in their order."""
        return EncodedTraces(self.folder, self.path, self._chosen[mask])

    @property
    def keys(self) -> Keys:
        """The key of each trace, as `row_keys` of all traces of the file."""
        return Keys(self._keys, self._chosen)

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """The number of ids of each completion."""
        return self._ids.lengths()[self._chosen]

    @functools.cached_property
    def prompt_lengths(self) -> NDArray[np.int32]:
        """The number of ids of each prompt's text, with one for each image."""
        lengths: NDArray[np.int32] = np.fromfile(self.folder / "prompts.bin", "<i4")[self._chosen]
        return lengths

    @property
    def faults(self) -> list[Fault]:
        """The broken rows that were left out of the folder."""
        return [Fault(said) for said in self.about["faults"]]

    def digest(self) -> str:
        """The digest of the traces (data/digest.py). Of some of a file's traces: one of all, and of which they are."""
        whole = self.about["digest"]
        if self.about["places"] and self.about["path"] != str(self.path):  # a row without an id has its place for one
            everything = EncodedTraces(self.folder, self.path)
            whole = digest((trace.example, trace.ids) for trace in everything)
        if len(self) == len(self._ids):
            return str(whole)
        state = Digest()
        state.add(f"{whole}\n".encode() + self._chosen.astype("<i4").tobytes())
        return state.value()


class Writer:
    """Writes an encoded folder, row by row. It is whole, and has its name, after `finish`."""

    def __init__(self, folder: Path) -> None:
        """folder: does not exist."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.count = self.images = self.tokens = 0
        self._files: dict[str, IO[bytes]] = {}
        self._sizes = dict.fromkeys(_DATA, 0)
        self._hashes = array("q")
        self._digest = Digest()
        self._places = False

    def __enter__(self) -> "Writer":
        for name in _DATA:
            self._files[name], self._files[f"{name}.at"] = self._open(f"{name}.bin"), self._open(f"{name}.at")
            self._files[f"{name}.at"].write(np.int64(0).astype("<i8").tobytes())
        self._files["prompts"] = self._open("prompts.bin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # of what a full disk did not take, which has been said
                file.close()

    def add(self, row: EncodedRow) -> None:
        """Write a row. Raises OSError."""
        name = row.name or f"row {self.count}"
        self._append("ids", row.ids)
        self._append("rows", row.packed)
        self._append("keys", name.encode())
        self._files["prompts"].write(np.int32(row.prompt).astype("<i4").tobytes())
        self._digest.add(row.record)
        self._hashes.append(hash(name))
        self._places |= not row.name
        self.count += 1
        self.images += row.images
        self.tokens += len(row.ids) // 4

    def finish(self, final: Path, traces: Path, key: Mapping[str, Any], faults: Sequence[Fault]) -> None:
        """Give the folder its name. traces: their file. key: what the folder's name is made of. Raises OSError."""
        for file in self._files.values():
            file.close()
        self._make_keys_unique()
        about = {
            "format": FORMAT,
            "traces": self.count,
            "tokens": self.tokens,
            "images": self.images,
            "path": str(traces),
            "places": self._places,
            "digest": self._digest.value(),
            "faults": [fault.said for fault in faults],
            "key": dict(key),
            "files": {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())},
        }
        (self.folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        for path in [*self.folder.iterdir(), self.folder]:
            _flush(path)
        replace_folder(self.folder, final)

    def _open(self, name: str) -> IO[bytes]:
        return (self.folder / name).open("wb", buffering=1 << 20)

    def _append(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._sizes[name] += len(data)
        self._files[f"{name}.at"].write(np.int64(self._sizes[name] // _DATA[name]).astype("<i8").tobytes())

    def _make_keys_unique(self) -> None:
        """Write the keys again, as `unique_names` has them, if some are the same."""
        hashes, counts = np.unique(np.frombuffer(self._hashes, np.int64), return_counts=True)
        repeated = {int(value) for value in hashes[counts > 1]}
        if not repeated:
            return
        names = Blob(self.folder, "keys", "u1")
        # Only names that are repeated, and those that look like a number after one, can meet: the others stay.
        met = [row for row in range(self.count) if _meets(names[row].tobytes().decode(), repeated)]
        unique = dict(zip(met, unique_names([names[row].tobytes().decode() for row in met]), strict=True))
        at = 0
        with self._open("unique.bin") as data, self._open("unique.at") as places:
            places.write(np.int64(0).astype("<i8").tobytes())
            for row in range(self.count):
                key = unique[row].encode() if row in unique else names[row].tobytes()
                at += len(key)
                data.write(key)
                places.write(np.int64(at).astype("<i8").tobytes())
        for kind in ("bin", "at"):
            (self.folder / f"unique.{kind}").replace(self.folder / f"keys.{kind}")


def _meets(name: str, repeated: set[int]) -> bool:
    while hash(name) not in repeated:
        numbered = _NUMBERED.fullmatch(name)
        if numbered is None:
            return False
        name = numbered[1]
    return True


def read_about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    return about


def is_whole(folder: Path) -> bool:
    """Whether the folder has every byte that was written into it, as a name says it does unless a copy broke off."""
    try:
        about = read_about(folder)
        sizes = all((folder / name).stat().st_size == size for name, size in about["files"].items())
        return sizes and about["format"] == FORMAT and about["traces"] > 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def images_unchanged(folder: Path, path: Path) -> bool:
    """Whether the image files of the rows are as they were when the folder was written."""
    traces = EncodedTraces(folder, path)
    return not traces.about["images"] or all(
        rows.image_files_unchanged(traces.packed(index), path) for index in range(len(traces))
    )


def replace_folder(partial: Path, final: Path) -> None:
    """Give a folder its final name, in place of what has it. Raises OSError."""
    stale = partial.with_name(f"{partial.name}-stale")
    with contextlib.suppress(FileNotFoundError):
        final.rename(stale)
    partial.rename(final)
    _flush(final.parent)
    shutil.rmtree(stale, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
