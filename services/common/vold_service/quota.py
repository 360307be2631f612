"""Quotas of tenants: tokens a minute, and requests at a time. Checked before any work is queued.

Tokens are a token bucket (https://en.wikipedia.org/wiki/Token_bucket) that holds the tokens of one minute and fills
evenly. A request for more than a whole bucket waits until the bucket is full and leaves it negative. Such a request is
slow but possible, and in the long run the tenant gets no more than its tokens a minute.

A refused request costs nothing. Its retry time is the time at which the bucket holds its tokens, after those of the
callers in line (vold_service.line): callers that have come back at their time before and found the tokens spent. So a
refusal alone delays no other request. If callers come back at their times, each is refused at most twice for lack of
tokens: a large request does not wait for ever behind a stream of small ones.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter
from vold_proto.v1 import quota_pb2, status_pb2

from vold_service.errors import QUOTA, ServiceError
from vold_service.line import Line
from vold_service.tenants import Tenant

FIRST_GUESS_SECONDS = 1.0
"""The assumed duration of a tenant's request until the first one has ended."""

REFUNDED_CODES = (status_pb2.RESOURCE_EXHAUSTED, status_pb2.UNAVAILABLE)
"""A request that ends with one of these errors costs nothing: the service did no work for it, and the caller sends it
again. A request that was cancelled, or that missed its deadline, may have been computed."""


LIMITS = ("tokens_per_minute", "max_concurrent")
"""The limits of a tenant that are counted here."""

REFUSALS = Counter(
    "vold_tenant_quota_refusals", "requests that a tenant's limit refused, by tenant and limit", ["tenant", "limit"]
)


@dataclass(slots=True)
class _Account:
    """A tenant's state. tokens: in the bucket at the time `updated_at`. running: requests under way. seconds: a running
    mean of the duration of requests. refused: requests refused by a limit. token_line, slot_line: the callers that wait
    for tokens and for one of `max_concurrent` slots.
    """

    tokens: float
    updated_at: float
    running: int = 0
    seconds: float = FIRST_GUESS_SECONDS
    refused: int = 0
    token_line: Line = field(default_factory=Line)
    slot_line: Line = field(default_factory=Line)

    def fill(self, tokens_per_minute: int, now: float) -> None:
        """Add the tokens since `updated_at`."""
        grown = self.tokens + tokens_per_minute / 60 * (now - self.updated_at)
        self.tokens, self.updated_at = min(float(tokens_per_minute), grown), now


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
    def admit(
        self, tenant: Tenant, tokens: int, *, caller: str = "", remaining: float | None = None
    ) -> Iterator[Admission]:
        """Count a request of `tokens` against its tenant while the context lasts.

        caller: names the request, and stays the same when it is sent again; without it the request gets no place in
        line. remaining: seconds to its deadline; a request that cannot come back in time gets no place either.

        Raises RESOURCE_EXHAUSTED, with the seconds until the retry, if the tenant is over a limit.
        """
        account = self._account(tenant)
        started = self._clock()
        self._check_slots(tenant, account, _key(caller, tokens), remaining, started)
        self.charge(tenant, tokens, caller=caller, remaining=remaining)
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

    def charge(self, tenant: Tenant, tokens: int, *, caller: str = "", remaining: float | None = None) -> None:
        """Take tokens from the bucket. Raises RESOURCE_EXHAUSTED as `admit` does."""
        if tenant.tokens_per_minute is None or not tokens:
            return
        account, now, key = self._account(tenant), self._clock(), _key(caller, tokens)
        rate, capacity = tenant.tokens_per_minute / 60, float(tenant.tokens_per_minute)
        account.fill(tenant.tokens_per_minute, now)
        callers, ahead = account.token_line.ahead(key, now)
        missing = min(tokens, capacity) + ahead - account.tokens
        if missing <= 1e-6 * capacity:  # a rounding error must not cost a round trip
            account.tokens -= tokens
            account.token_line.leave(key)
            return
        seconds = missing / rate
        account.token_line.refuse(key, tokens, now + seconds, now, returns=_returns(seconds, remaining))
        behind = f", after {callers} requests that wait already" if callers else ""
        raise self._refusal(
            tenant,
            LIMITS[0],
            f"the tenant {tenant.name!r} has used its {tenant.tokens_per_minute} tokens a minute: come back in "
            f"{seconds:.2f} s{behind}, or ask the operator for more",
            seconds,
        )

    def quota(self, tenant: Tenant) -> quota_pb2.Quota:
        """The tenant's limits, and how much of them is used now."""
        account = self._account(tenant)
        message = quota_pb2.Quota(
            tenant=tenant.name,
            tokens_per_minute=tenant.tokens_per_minute,
            max_concurrent=tenant.max_concurrent,
            max_sequence=tenant.max_sequence,
            running=account.running,
            refused=account.refused,
        )
        if tenant.tokens_per_minute is not None:
            account.fill(tenant.tokens_per_minute, self._clock())
            message.tokens_left = account.tokens
        return message

    def _check_slots(
        self, tenant: Tenant, account: _Account, key: int | None, remaining: float | None, now: float
    ) -> None:
        """Raise RESOURCE_EXHAUSTED if no slot is free.

        One slot is kept for the first caller in line. Slots are not kept for the others: an empty slot is lost time.
        """
        if tenant.max_concurrent is None:
            return
        callers, _ = account.slot_line.ahead(key, now)
        if tenant.max_concurrent - account.running > min(callers, 1):
            account.slot_line.leave(key)
            return
        seconds = account.seconds * (callers + 1) / tenant.max_concurrent
        returns = _returns(seconds, remaining)
        account.slot_line.refuse(key, 1, now + seconds, now, returns=returns)
        if returns:
            account.token_line.postpone(key, now + seconds)
        raise self._refusal(
            tenant,
            LIMITS[1],
            f"the tenant {tenant.name!r} has {account.running} requests under way, and may have "
            f"{tenant.max_concurrent}: send fewer at a time, or ask the operator for more",
            seconds,
        )

    def _refusal(self, tenant: Tenant, limit: str, message: str, seconds: float) -> ServiceError:
        self._account(tenant).refused += 1
        REFUSALS.labels(tenant.name, limit).inc()
        return ServiceError(status_pb2.RESOURCE_EXHAUSTED, message, retry_seconds=seconds, reason=QUOTA)

    def _account(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = _Account(float(tenant.tokens_per_minute or 0), self._clock())
            self._accounts[tenant.name] = account
            for limit in LIMITS:  # Prometheus sees no growth in a count that begins at 1
                REFUSALS.labels(tenant.name, limit)
        return account


def _key(caller: str, tokens: int) -> int | None:
    """A caller's key in line: a hash, because a request id may be long."""
    return hash((caller, tokens)) if caller else None


def _returns(seconds: float, remaining: float | None) -> bool:
    return remaining is None or seconds < remaining
