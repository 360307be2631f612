"""A cache of computed scores: in memory, and optionally on disk.

The key of a score covers everything that the score depends on: weights, dtype and backend, prompt, completion,
candidates and options. So an entry is never stale; it is only evicted. Hidden states are not cached: they would take
the place of all other scores.
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
"""Approximate bytes of memory that an entry takes besides its arrays."""
EVICTION_TARGET = 0.9
"""Eviction empties a full disk tier to this fraction of its limit, so that the next eviction is not due at once."""


def score_key(sequence: Sequence, model: bytes) -> bytes | None:
    """The cache key of a sequence's score under a model; None if the score is not cached."""
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
    """Memory first, then disk. `get` and `put` run on the event loop; the disk tier's methods in any thread."""

    def __init__(self, memory_bytes: int, disk: "DiskTier | None" = None) -> None:
        """memory_bytes: the limit of the memory tier; 0 turns it off."""
        self._memory: LRUCache[bytes, SequenceScore] = LRUCache(memory_bytes, getsizeof=_size)
        self.disk = disk

    @property
    def memory_bytes(self) -> int:
        """Bytes in use."""
        return int(self._memory.currsize)

    def __len__(self) -> int:
        return len(self._memory)

    def get(self, key: bytes) -> SequenceScore | None:
        return self._memory.get(key)

    def put(self, key: bytes, score: SequenceScore) -> None:
        with suppress(ValueError):  # the entry is larger than the whole cache
            # Copies: a view would keep the whole array of its batch in memory, uncounted.
            self._memory[key] = SequenceScore(**{name: array.copy() for name, array in _arrays(score).items()})

    def close(self) -> None:
        self._memory.clear()
        if self.disk is not None:
            self.disk.close()


class DiskTier:
    """Scores in one SQLite file, which several services may share. A disk failure never fails a request.

    Entries are plain arrays (safetensors), so a file that another program wrote can do no harm.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError if the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "scores.sqlite"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._failures = 0
        self._writer = ThreadPoolExecutor(1, "cache-writer")
        try:
            self._connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False, isolation_level=None)
            with closing(self._connection.cursor()) as cursor:
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=OFF")  # a lost entry is computed again
                cursor.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score BLOB, used REAL)")
                cursor.execute("CREATE INDEX IF NOT EXISTS scores_used ON scores (used)")
                cursor.execute("SELECT COALESCE(SUM(LENGTH(score)), 0) FROM scores")
                self._bytes = int(cursor.fetchone()[0])
        except sqlite3.Error as error:
            raise OSError(f"cannot keep scores in {self._path}: {error}; choose another --cache-dir") from error

    @property
    def failures(self) -> int:
        """The number of disk failures."""
        return self._failures

    def load(self, keys: list[bytes]) -> dict[bytes, SequenceScore]:
        """The stored scores among `keys`."""
        scores: dict[bytes, SequenceScore] = {}
        try:
            with self._lock, closing(self._connection.cursor()) as cursor:
                now = time.time()
                for key in keys:
                    row = cursor.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        scores[key] = _unpack(row[0])
                        with suppress(sqlite3.Error):  # on a full disk an entry can still be read
                            cursor.execute("UPDATE scores SET used = ? WHERE key = ?", (now, key))
        except Exception as error:
            self._count_failure("read", error)
        return scores

    def store(self, scores: Mapping[bytes, SequenceScore]) -> None:
        """Queue scores for writing by the tier's own thread."""
        with suppress(RuntimeError):  # the tier was closed
            self._writer.submit(self._write, dict(scores))

    def close(self) -> None:
        """Wait for the queued writes."""
        self._writer.shutdown()
        self._connection.close()

    def _write(self, scores: dict[bytes, SequenceScore]) -> None:
        now = time.time()
        rows = [(key, _pack(score), now) for key, score in scores.items()]
        try:
            with self._lock, closing(self._connection.cursor()) as cursor:
                cursor.execute("BEGIN")
                try:
                    cursor.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
                    self._bytes += sum(len(row[1]) for row in rows)
                    if self._bytes > self._max_bytes:
                        self._evict(cursor)
                    cursor.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        cursor.execute("ROLLBACK")
                    raise
        except Exception as error:
            self._count_failure("write", error)

    def _evict(self, cursor: sqlite3.Cursor) -> None:
        """Delete the least recently used entries."""
        # Other services may write to the file too, so read its size from the file.
        self._bytes = int(cursor.execute("SELECT COALESCE(SUM(LENGTH(score)), 0) FROM scores").fetchone()[0])
        surplus = self._bytes - EVICTION_TARGET * self._max_bytes
        oldest: list[tuple[bytes]] = []
        for key, size in cursor.execute("SELECT key, LENGTH(score) FROM scores ORDER BY used"):
            if surplus <= 0:
                break
            oldest.append((key,))
            surplus -= size
            self._bytes -= size
        cursor.executemany("DELETE FROM scores WHERE key = ?", oldest)

    def _count_failure(self, verb: str, error: Exception) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # log failures 1, 2, 4, 8...: a full disk fails every write
            log.warning("cannot %s scores in %s (%d times so far): %s", verb, self._path, self._failures, error)


def _size(score: SequenceScore) -> int:
    return ENTRY_OVERHEAD + sum(array.nbytes for array in _arrays(score).values())


def _arrays(score: SequenceScore) -> dict[str, np.ndarray]:
    named = ((field.name, getattr(score, field.name)) for field in fields(SequenceScore))
    return {name: array for name, array in named if array is not None}


def _pack(score: SequenceScore) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in _arrays(score).items()})


def _unpack(data: bytes) -> SequenceScore:
    return SequenceScore(**load(data))
