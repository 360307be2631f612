"""A cache of verdicts, for items that are sent again.

The key of a verdict is its item without the id, with the versions of the verifier and of this package, and its owner,
so that no tenant learns what another had verified. Errors are not cached: a retry may succeed.
"""

import hashlib
from contextlib import suppress
from typing import Any

from cachetools import LRUCache
from vold_proto.v1 import verifier_pb2

from vold_verifier import metrics
from vold_verifier.verifiers.base import Verifier

ENTRY_OVERHEAD = 200
"""Approximate bytes that an entry takes besides its value."""


def item_key(item: verifier_pb2.VerifyItem) -> bytes:
    """Serialize `item` without its id: items with equal keys must have equal verdicts."""
    identifier, item.id = item.id, ""
    try:
        return item.SerializeToString(deterministic=True)
    finally:
        item.id = identifier


class ResultCache:
    """A least-recently-used cache of bounded size. Not thread-safe: for use on one event loop."""

    def __init__(self, max_bytes: int, server_version: str) -> None:
        """max_bytes: 0 turns the cache off."""
        self._entries: LRUCache[bytes, bytes] = LRUCache(
            max_bytes, getsizeof=lambda packed: len(packed) + ENTRY_OVERHEAD
        )
        self._server_version = server_version

    def get(self, verifier: Verifier[Any], key: bytes, owner: str) -> verifier_pb2.VerifyResult | None:
        """Return the result of the owner's item with that key, marked as cached, without an id."""
        if not self._is_cacheable(verifier):
            return None
        packed = self._entries.get(self._digest(verifier, key, owner))
        (metrics.CACHE_MISSES if packed is None else metrics.CACHE_HITS).inc()
        return None if packed is None else verifier_pb2.VerifyResult.FromString(packed)

    def put(self, verifier: Verifier[Any], key: bytes, owner: str, result: verifier_pb2.VerifyResult) -> None:
        if not self._is_cacheable(verifier) or result.HasField("error"):
            return
        cached = verifier_pb2.VerifyResult()
        cached.CopyFrom(result)
        cached.id, cached.seconds, cached.cached = "", 0.0, True
        with suppress(ValueError):  # the result is larger than the whole cache
            self._entries[self._digest(verifier, key, owner)] = cached.SerializeToString()
        metrics.CACHE_BYTES.set(self._entries.currsize)

    def _is_cacheable(self, verifier: Verifier[Any]) -> bool:
        return self._entries.maxsize > 0 and verifier.deterministic

    def _digest(self, verifier: Verifier[Any], key: bytes, owner: str) -> bytes:
        context = f"{owner}\n{self._server_version}\n{verifier.version}\n".encode()
        return hashlib.blake2b(context + key, digest_size=20).digest()
