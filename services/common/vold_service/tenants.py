"""Who calls: the tenant that a key stands for, and what it may take of a shared service."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """weight: its share of a busy service, beside the others' weights. The limits are None where there are none.

    tokens_per_minute: prompt and completion tokens together. max_sequence: prompt and completion of one sequence.
    admin: may load and unload models and see what the others use.
    """

    name: str
    weight: float = 1.0
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    max_sequence: int | None = None
    admin: bool = False


OPEN = Tenant("open", admin=True)
"""Everybody, where a service was started without keys."""
