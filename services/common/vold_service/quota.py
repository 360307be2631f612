"""Quotas of tenants: tokens a minute, and requests at a time. Checked before any work is queued.

Tokens are a token bucket (https://en.wikipedia.org/wiki/Token_bucket) that holds the tokens of one minute and fills
evenly. A request for more than a whole bucket waits until the bucket is full and leaves it negative. Such a request is
slow but possible, and in the long run the tenant gets no more than its tokens a minute.

A refused request gets the time of its retry, after the retries of requests refused before it. If all of them retry at
their times and no other request comes in between, each of them is admitted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vold_proto.v1 import status_pb2

from vold_service.errors import ServiceError
from vold_service.tenants import Tenant

FIRST_GUESS_SECONDS = 1.0
"""The assumed duration of a tenant's request until the first one has ended."""

REFUNDED_CODES = (status_pb2.RESOURCE_EXHAUSTED, status_pb2.UNAVAILABLE)
"""A request that ends with one of these errors costs nothing: the service did no work for it, and the caller sends it
again. A request that was cancelled, or that missed its deadline, may have been computed."""


@dataclass(slots=True)
class _Account:
    """A tenant's state. tokens: in the bucket at the time `updated_at`. retry_at: the retry time of the last request
    that was refused for lack of tokens. tokens_after_retry: in the bucket when that request has been charged.
    slot_retry_at: the retry time of the last request that was refused by `max_concurrent`. running: requests under way.
    seconds: a running mean of the duration of requests.
    """

    tokens: float
    updated_at: float
    retry_at: float
    slot_retry_at: float
    tokens_after_retry: float = 0.0
    running: int = 0
    seconds: float = FIRST_GUESS_SECONDS


@dataclass(slots=True)
class Admission:
    """An admitted request. charged: its tokens, counted against the quota. `refund` returns the unused ones."""

    charged: int
    unused: int = 0

    def refund(self, tokens: int) -> None:
        self.unused = min(self.charged, self.unused + tokens)


class Quotas:
    """The accounts of all tenants. Not thread-safe.

    clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @contextmanager
    def admit(self, tenant: Tenant, tokens: int) -> Iterator[Admission]:
        """Count a request of `tokens` against its tenant while the context lasts.

        Raises RESOURCE_EXHAUSTED, with the seconds until the retry, if the tenant is over a limit.
        """
        account = self._account(tenant)
        started = self._clock()
        if tenant.max_concurrent is not None and account.running >= tenant.max_concurrent:
            raise self._too_many_requests(tenant, account, started)
        self.charge(tenant, tokens)
        admission = Admission(tokens)
        account.running += 1
        try:
            yield admission
        except ServiceError as error:
            if error.code in REFUNDED_CODES:
                admission.refund(tokens)
            raise
        finally:
            account.running -= 1
            account.seconds = 0.8 * account.seconds + 0.2 * (self._clock() - started)
            account.tokens += admission.unused

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Take tokens from the bucket. Raises RESOURCE_EXHAUSTED as `admit` does."""
        if tenant.tokens_per_minute is None:
            return
        account, now = self._account(tenant), self._clock()
        rate, capacity = tenant.tokens_per_minute / 60, float(tenant.tokens_per_minute)
        account.tokens = min(capacity, account.tokens + rate * (now - account.updated_at))
        account.updated_at = now
        missing = min(tokens, capacity) - account.tokens
        if missing <= 1e-6 * capacity:  # a rounding error must not cost a round trip
            account.tokens -= tokens
            return
        # The first refused request waits for the missing tokens; each later one waits from the retry before it.
        if account.retry_at > now:
            start, missing = account.retry_at, min(tokens, capacity) - account.tokens_after_retry
        else:
            start = now
        account.retry_at = start + missing / rate
        account.tokens_after_retry = min(tokens, capacity) - tokens
        raise ServiceError(
            status_pb2.RESOURCE_EXHAUSTED,
            f"the tenant {tenant.name!r} has used its {tenant.tokens_per_minute} tokens a minute: come back in "
            f"{account.retry_at - now:.2f} s, or ask the operator for more",
            retry_seconds=account.retry_at - now,
        )

    def _too_many_requests(self, tenant: Tenant, account: _Account, now: float) -> ServiceError:
        assert tenant.max_concurrent is not None
        account.slot_retry_at = max(now, account.slot_retry_at) + account.seconds / tenant.max_concurrent
        return ServiceError(
            status_pb2.RESOURCE_EXHAUSTED,
            f"the tenant {tenant.name!r} has {account.running} requests under way, and may have "
            f"{tenant.max_concurrent}: send fewer at a time, or ask the operator for more",
            retry_seconds=account.slot_retry_at - now,
        )

    def _account(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            now = self._clock()
            account = _Account(float(tenant.tokens_per_minute or 0), now, now, now)
            self._accounts[tenant.name] = account
        return account
