"""Scores that were computed before: in memory, and on a disk where one is given.

A score is known by what it depends on: the weights and what they compute in, the prompt, the completion, the candidates
and the options. So an entry is never stale, and only makes room for others. Hidden states are not kept: they would
crowd out everything else.
"""

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from safetensors.numpy import load, save

from vold_teacher.types import Sequence, SequenceScore

log = logging.getLogger("vold.teacher.cache")

ENTRY_OVERHEAD = 500
"""Bytes that an entry takes in memory beside its arrays, about."""
DISK_SLACK = 0.9
"""A full disk tier is emptied to this part of its limit, so that it is not swept again at once."""


def fingerprint(sequence: Sequence, model: bytes) -> bytes | None:
    """The key of a sequence's score under a model; None where it is not to be kept."""
    options = sequence.options
    if options.hidden_states:
        return None
    digest = hashlib.blake2b(model, digest_size=20)
    head = np.array(
        [len(sequence.prompt), len(sequence.completion), options.top_k, options.entropy, options.ranks], "<i8"
    )
    digest.update(head.tobytes() + np.float64(options.temperature).tobytes())
    digest.update(sequence.prompt.tobytes())
    digest.update(sequence.completion.tobytes())
    if sequence.candidates is not None and sequence.candidate_counts is not None:
        digest.update(sequence.candidate_counts.tobytes())
        digest.update(sequence.candidates.tobytes())
    return digest.digest()


class ScoreCache:
    """`get` and `put` belong to the event loop; `load` and `store` reach the disk, and run in any thread."""

    def __init__(self, memory_bytes: int, disk: "DiskTier | None" = None) -> None:
        """memory_bytes: 0 keeps nothing in memory."""
        self._memory: LRUCache[bytes, SequenceScore] = LRUCache(memory_bytes, getsizeof=_size)
        self.disk = disk

    @property
    def memory_bytes(self) -> int:
        """Taken now."""
        return int(self._memory.currsize)

    def __len__(self) -> int:
        return len(self._memory)

    def get(self, key: bytes) -> SequenceScore | None:
        return self._memory.get(key)

    def put(self, key: bytes, score: SequenceScore) -> None:
        with suppress(ValueError):  # one that is larger than the whole cache
            # Copies: a part of a batch's array would keep the whole of it, which nobody counts.
            self._memory[key] = SequenceScore(**{name: array.copy() for name, array in _arrays(score).items()})

    def close(self) -> None:
        self._memory.clear()
        if self.disk is not None:
            self.disk.close()


class DiskTier:
    """Scores in one SQLite file, which several services may share. A fault of the disk costs the tier, never a score.

    What goes in and out are plain arrays (safetensors), so a file that somebody else wrote can do no harm.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError where the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "scores.sqlite"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._faults = 0
        self._writer = ThreadPoolExecutor(1, "cache-writer")
        try:
            self._open = sqlite3.connect(self._path, timeout=5, check_same_thread=False, isolation_level=None)
            with closing(self._open.cursor()) as cursor:
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=OFF")  # a lost entry is computed again
                cursor.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score BLOB, used REAL)")
                cursor.execute("CREATE INDEX IF NOT EXISTS scores_used ON scores (used)")
                cursor.execute("SELECT COALESCE(SUM(LENGTH(score)), 0) FROM scores")
                self._bytes = int(cursor.fetchone()[0])
        except sqlite3.Error as error:
            raise OSError(f"cannot keep scores in {self._path}: {error}; choose another --cache-dir") from error

    @property
    def faults(self) -> int:
        """How often the disk failed."""
        return self._faults

    def load(self, keys: list[bytes]) -> dict[bytes, SequenceScore]:
        """Those of the keys that are there."""
        found: dict[bytes, SequenceScore] = {}
        try:
            with self._lock, closing(self._open.cursor()) as cursor:
                now = time.time()
                for key in keys:
                    row = cursor.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        found[key] = _unpack(row[0])
                        with suppress(sqlite3.Error):  # on a full disk an entry can still be read
                            cursor.execute("UPDATE scores SET used = ? WHERE key = ?", (now, key))
        except Exception as error:
            self._failed("read", error)
        return found

    def store(self, scores: Mapping[bytes, SequenceScore]) -> None:
        """Write them later, in a thread of the tier's own."""
        with suppress(RuntimeError):  # closed meanwhile
            self._writer.submit(self._write, dict(scores))

    def close(self) -> None:
        """Finish what is being written."""
        self._writer.shutdown()
        self._open.close()

    def _write(self, scores: dict[bytes, SequenceScore]) -> None:
        now = time.time()
        rows = [(key, _pack(score), now) for key, score in scores.items()]
        try:
            with self._lock, closing(self._open.cursor()) as cursor:
                cursor.execute("BEGIN")
                try:
                    cursor.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
                    self._bytes += sum(len(row[1]) for row in rows)
                    if self._bytes > self._max_bytes:
                        self._make_room(cursor)
                    cursor.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        cursor.execute("ROLLBACK")
                    raise
        except Exception as error:
            self._failed("write", error)

    def _make_room(self, cursor: sqlite3.Cursor) -> None:
        """Forget the least recently used."""
        # Others may write to the file as well, so what it holds is asked of it.
        self._bytes = int(cursor.execute("SELECT COALESCE(SUM(LENGTH(score)), 0) FROM scores").fetchone()[0])
        surplus = self._bytes - DISK_SLACK * self._max_bytes
        oldest: list[tuple[bytes]] = []
        for key, size in cursor.execute("SELECT key, LENGTH(score) FROM scores ORDER BY used"):
            if surplus <= 0:
                break
            oldest.append((key,))
            surplus -= size
            self._bytes -= size
        cursor.executemany("DELETE FROM scores WHERE key = ?", oldest)

    def _failed(self, verb: str, error: Exception) -> None:
        self._faults += 1
        if self._faults & (self._faults - 1) == 0:  # the 1st, 2nd, 4th, 8th...: a full disk fails at every write
            log.warning("cannot %s scores in %s (%d times so far): %s", verb, self._path, self._faults, error)


def _size(score: SequenceScore) -> int:
    return ENTRY_OVERHEAD + sum(array.nbytes for array in _arrays(score).values())


def _arrays(score: SequenceScore) -> dict[str, np.ndarray]:
    named = ((field.name, getattr(score, field.name)) for field in fields(SequenceScore))
    return {name: array for name, array in named if array is not None}


def _pack(score: SequenceScore) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in _arrays(score).items()})


def _unpack(data: bytes) -> SequenceScore:
    return SequenceScore(**load(data))
