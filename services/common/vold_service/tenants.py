"""Tenants: the callers of a shared service, with their limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """weight: the tenant's share of a busy service, relative to other tenants' weights. A limit of None is no limit.

    tokens_per_minute: prompt and completion tokens together. max_sequence: tokens of one prompt and completion.
    admin: may load and unload models and see the usage of other tenants.
    """

    name: str
    weight: float = 1.0
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    max_sequence: int | None = None
    admin: bool = False


OPEN_TENANT = Tenant("open", admin=True)
"""The tenant of every caller if the service was started without keys."""
