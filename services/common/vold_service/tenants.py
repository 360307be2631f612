"""Tenants: the callers of a shared service, with their limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """weight: the tenant's share of a busy service, relative to other tenants' weights. A limit of None is no limit.

    tokens_per_minute: prompt and completion tokens together. max_sequence: tokens of one prompt and completion.
    admin: may load and unload models and see the usage of other tenants. metrics: may see the metrics of all tenants.
    share_cache: the group of tenants whose cached results this one shares; "" for its own alone.
    """

    name: str
    weight: float = 1.0
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    max_sequence: int | None = None
    admin: bool = False
    metrics: bool = False
    share_cache: str = ""

    @property
    def sees_all(self) -> bool:
        """Whether the tenant may see figures of all tenants together."""
        return self.admin or self.metrics

    @property
    def cache_owner(self) -> str:
        """Whose cached results the tenant's requests find. No tenant's name equals a group's: a name has no colon."""
        return f"group:{self.share_cache}" if self.share_cache else self.name


OPEN_TENANT = Tenant("open", admin=True)
"""The tenant of every caller if the service was started without keys."""
