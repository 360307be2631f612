"""Verdicts that were found before, for items that are asked about again.

A verdict is known by all of its item but the id, and by the versions of the verifier and of this package. Errors are
not kept: the next attempt may do better.
"""

import hashlib
from contextlib import suppress
from typing import Any

from cachetools import LRUCache
from vold_proto.v1 import verifier_pb2

from vold_verifier import metrics
from vold_verifier.verifiers.base import Verifier

ENTRY_OVERHEAD = 200
"""Bytes that an entry takes beside its own, about."""


def key_of(item: verifier_pb2.VerifyItem) -> bytes:
    """All of `item` but its id, as bytes: equal for items that must have equal verdicts."""
    identifier, item.id = item.id, ""
    try:
        return item.SerializeToString(deterministic=True)
    finally:
        item.id = identifier


class ResultCache:
    """Bounded by memory; what was used longest ago makes room. For one thread, as one event loop is."""

    def __init__(self, max_bytes: int, server_version: str) -> None:
        """max_bytes: 0 keeps nothing."""
        self._entries: LRUCache[bytes, bytes] = LRUCache(max_bytes, getsizeof=lambda kept: len(kept) + ENTRY_OVERHEAD)
        self._server_version = server_version

    def get(self, verifier: Verifier[Any], key: bytes) -> verifier_pb2.VerifyResult | None:
        """The verdict on the item of that key, marked as cached, without an id."""
        if not self._keeps(verifier):
            return None
        kept = self._entries.get(self._digest(verifier, key))
        (metrics.CACHE_MISSES if kept is None else metrics.CACHE_HITS).inc()
        return None if kept is None else verifier_pb2.VerifyResult.FromString(kept)

    def put(self, verifier: Verifier[Any], key: bytes, result: verifier_pb2.VerifyResult) -> None:
        if not self._keeps(verifier) or result.HasField("error"):
            return
        kept = verifier_pb2.VerifyResult()
        kept.CopyFrom(result)
        kept.id, kept.seconds, kept.cached = "", 0.0, True
        with suppress(ValueError):  # one that is larger than the whole cache
            self._entries[self._digest(verifier, key)] = kept.SerializeToString()
        metrics.CACHE_BYTES.set(self._entries.currsize)

    def _keeps(self, verifier: Verifier[Any]) -> bool:
        return self._entries.maxsize > 0 and verifier.deterministic

    def _digest(self, verifier: Verifier[Any], key: bytes) -> bytes:
        versions = f"{self._server_version}\n{verifier.version}\n".encode()
        return hashlib.blake2b(versions + key, digest_size=20).digest()
