"""A cache of computed scores: in memory, and optionally on disk.

The key of a score covers everything that the score depends on: weights, dtype and backend, prompt, completion,
candidates and options; and its owner, so that no tenant learns what another had scored. An entry is never stale; it is
only evicted. Hidden states are not cached: they would take the place of all other scores.
"""

import hashlib
import hmac
import logging
import os
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
CHECKSUM_BYTES = 16
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
    digest.update(hashlib.blake2b(sequence.owner.encode(), digest_size=20).digest())
    digest.update(head.tobytes() + np.float64(options.temperature).tobytes())
    digest.update(sequence.prompt.tobytes())
    digest.update(sequence.completion.tobytes())
    if sequence.candidates is not None and sequence.candidate_counts is not None:
        digest.update(sequence.candidate_counts.tobytes())
        digest.update(sequence.candidates.tobytes())
    return digest.digest()


def fits(score: SequenceScore, sequence: Sequence) -> bool:
    """Whether a stored score has the arrays that the sequence asks for, in their shapes and types."""
    options, positions = sequence.options, len(sequence.completion)
    expected: dict[str, tuple[type, tuple[int, ...]]] = {"logprobs": (np.float32, (positions,))}
    if options.top_k:
        expected["top_ids"] = (np.int32, (positions, options.top_k))
        expected["top_logprobs"] = (np.float32, (positions, options.top_k))
    if sequence.candidates is not None:
        expected["candidate_logprobs"] = (np.float32, (len(sequence.candidates),))
    if options.entropy:
        expected["entropy"] = (np.float32, (positions,))
    if options.ranks:
        expected["ranks"] = (np.int32, (positions,))
    arrays = _arrays(score)
    return arrays.keys() == expected.keys() and all(
        (arrays[name].dtype, arrays[name].shape) == form for name, form in expected.items()
    )


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

    Entries are plain arrays (safetensors) behind a checksum, so a file that another program wrote can do no harm, and
    a damaged entry is computed again. A file that is no such store when the service starts is set aside.
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
            try:
                self._connection, self._bytes = self._open()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                self._set_aside(error)
                self._connection, self._bytes = self._open()
        except sqlite3.Error as error:
            raise OSError(f"cannot keep scores in {self._path}: {error}; choose another --cache-dir") from error

    def _open(self) -> tuple[sqlite3.Connection, int]:
        """A connection to the file, which is made if it is not there, and the bytes of its entries."""
        connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False, isolation_level=None)
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=OFF")  # a lost entry is computed again
                cursor.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score BLOB, used REAL)")
                cursor.execute("CREATE INDEX IF NOT EXISTS scores_used ON scores (used)")
                cursor.execute("SELECT COALESCE(SUM(LENGTH(score)), 0) FROM scores")
                return connection, int(cursor.fetchone()[0])
        except BaseException:
            connection.close()
            raise

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename the file, in the place of one set aside before."""
        aside = f"{self._path}.damaged"
        log.warning("%s is no store of scores (%s): a new one begins, and the file is now %s", self._path, error, aside)
        for suffix in ("-wal", "-shm"):  # SQLite would play the old journal back into the new file
            with suppress(FileNotFoundError):
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
        os.replace(self._path, aside)

    @property
    def failures(self) -> int:
        """The number of disk failures."""
        return self._failures

    def load(self, keys: list[bytes]) -> dict[bytes, SequenceScore]:
        """The stored scores among `keys`."""
        scores: dict[bytes, SequenceScore] = {}
        damaged = 0
        try:
            with self._lock, closing(self._connection.cursor()) as cursor:
                now = time.time()
                for key in keys:
                    row = cursor.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
                    if row is None:
                        continue
                    score = _unpack(key, row[0])
                    if score is None:
                        damaged += 1
                    else:
                        scores[key] = score
                        with suppress(sqlite3.Error):  # on a full disk an entry can still be read
                            cursor.execute("UPDATE scores SET used = ? WHERE key = ?", (now, key))
        except Exception as error:
            self._count_failure("read", error)
        if damaged:
            self._count_failure("read", ValueError(f"{damaged} of {len(keys)} are damaged, and are computed again"))
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
        rows = [(key, _pack(key, score), now) for key, score in scores.items()]
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


def _pack(key: bytes, score: SequenceScore) -> bytes:
    data = save({name: np.ascontiguousarray(array) for name, array in _arrays(score).items()})
    return _checksum(key, data) + data


def _unpack(key: bytes, row: object) -> SequenceScore | None:
    """The score in a row; None if the row is not as `_pack` wrote it for this key."""
    if not isinstance(row, bytes):
        return None
    data = row[CHECKSUM_BYTES:]
    if not hmac.compare_digest(row[:CHECKSUM_BYTES], _checksum(key, data)):
        return None
    try:
        return SequenceScore(**load(data))
    except Exception:  # of a version that stores other arrays
        return None


def _checksum(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=CHECKSUM_BYTES).digest()


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not a database, or a damaged one, or has other tables. Else the place cannot be used."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
