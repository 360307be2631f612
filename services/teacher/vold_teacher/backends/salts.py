"""Salts for the prefix caches of other engines: what one tenant's prompt left there does not speed up another's.

An engine that is given a salt reuses a prefix only for requests with the same salt. The salts of this process follow
from a secret of its own, so nobody who reaches the engine past this service can give another's.
"""

import base64
import hashlib
import secrets
from functools import lru_cache

from vold_service.tenants import OPEN_TENANT

_SECRET = secrets.token_bytes(32)


@lru_cache(maxsize=4096)
def cache_salt(owner: str) -> str:
    """43 characters for an owner (Sequence.owner)."""
    digest = hashlib.blake2b(owner.encode(), key=_SECRET, digest_size=32).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def salted(field: str, owner: str) -> dict[str, str]:
    """The field of a request that carries the salt; nothing for work of this service itself, which has no owner, and
    nothing where no keys tell tenants apart.
    """
    return {field: cache_salt(owner)} if owner not in ("", OPEN_TENANT.cache_owner) else {}
