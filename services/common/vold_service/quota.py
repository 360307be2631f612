"""Quotas of tenants: tokens a minute, requests at a time, and bytes under way. Checked before any work is queued.

Tokens are a token bucket (https://en.wikipedia.org/wiki/Token_bucket) that holds the tokens of one minute and fills
evenly. A request for more than a whole bucket waits until the bucket is full and leaves it negative. Such a request is
slow but possible, and in the long run the tenant gets no more than its tokens a minute.

A refused request costs nothing. Its retry time is the time at which the bucket holds its tokens, after those of the
callers in line (vold_service.line): callers that have come back at their time before and found the tokens spent. So a
refusal alone delays no other request. If callers come back at their times, each is refused at most twice for lack of
tokens: a large request does not wait for ever behind a stream of small ones.

A request holds its `Place` from before its body is parsed until its reply is sent or given up, so that replies that
nobody reads count against their tenant.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter
from vold_proto.v1 import quota_pb2, status_pb2

from vold_service.errors import QUOTA, ServiceError, invalid
from vold_service.line import Line
from vold_service.tenants import Tenant

FIRST_GUESS_SECONDS = 1.0
"""The assumed duration of a tenant's request until the first one has ended."""

REFUNDED_CODES = (status_pb2.RESOURCE_EXHAUSTED, status_pb2.UNAVAILABLE)
"""A request that ends with one of these errors costs no more than the reading of its texts: the service did no other
work for it, and the caller sends it again. A request that was cancelled, or that missed its deadline, may have been
computed, and one of whose reply a part is there has been."""


LIMITS = ("tokens_per_minute", "max_concurrent", "bytes_under_way")
"""The limits of a tenant that are counted here."""

MAX_TENANT_BYTES = 1 << 30
"""Bytes of the requests and replies of one tenant that may be under way, by default."""

REFUSALS = Counter(
    "vold_tenant_quota_refusals", "requests that a tenant's limit refused, by tenant and limit", ["tenant", "limit"]
)


@dataclass(slots=True)
class _Account:
    """A tenant's state. tokens: in the bucket at the time `updated_at`. running: requests under way. seconds: a running
    mean of the duration of requests. bytes: of their bodies and replies. refused: requests refused by a limit.
    token_line, slot_line: the callers that wait for tokens and for one of `max_concurrent` slots.
    """

    tokens: float
    updated_at: float
    running: int = 0
    bytes: int = 0
    seconds: float = FIRST_GUESS_SECONDS
    refused: int = 0
    token_line: Line = field(default_factory=Line)
    slot_line: Line = field(default_factory=Line)

    def fill(self, tokens_per_minute: int, now: float) -> None:
        """Add the tokens since `updated_at`."""
        grown = self.tokens + tokens_per_minute / 60 * (now - self.updated_at)
        self.tokens, self.updated_at = min(float(tokens_per_minute), grown), now


class Place:
    """What a request occupies of its tenant's limits: one of its requests at a time, tokens, and bytes.

    `Quotas.open_place` makes it; `close` gives it back. charged: the request's tokens, counted against the quota.
    """

    def __init__(
        self, quotas: "Quotas", account: _Account, tenant: Tenant, key: int | None, remaining: float | None
    ) -> None:
        self.charged = 0
        self._quotas, self._account, self._tenant = quotas, account, tenant
        self._key, self._remaining = key, remaining
        self._started = quotas.clock()
        self._prepaid = self._spent = self._unused = self._bytes = 0
        self._admitted = self._closed = self._answered = self._refused = False
        account.running += 1

    def prepay(self, tokens: int) -> None:
        """Take tokens from the tenant's bucket for charges that follow, before the request's own number is known. What
        is left of them goes back when the place is closed.

        Raises RESOURCE_EXHAUSTED, with the seconds until the retry.
        """
        self._quotas.charge_key(self._tenant, tokens, self._key, self._remaining)
        self._prepaid += tokens

    def spend(self, tokens: int) -> None:
        """Take prepaid tokens for good, because their text is read now. A request that is charged later, for the same
        tokens among others, pays them once; one that is refused after that, these alone.
        """
        self._spent = min(self._prepaid, self._spent + tokens)

    @contextmanager
    def charging(self, tokens: int) -> Iterator[None]:
        """Take tokens for the work in the block; give them back, but for what was spent, if it ends with one of
        REFUNDED_CODES and was not `answered`.

        Raises RESOURCE_EXHAUSTED, with the seconds until the retry.
        """
        paid = min(self._prepaid, tokens)
        self._quotas.charge_key(self._tenant, tokens - paid, self._key, self._remaining)
        self._prepaid -= paid
        self.charged += tokens
        self._admitted = True
        try:
            yield
        except ServiceError as error:
            if error.code in REFUNDED_CODES and not self._answered:
                self.refund(tokens)
                self._refused = True
            raise

    def answered(self) -> None:
        """A part of the reply is there: whatever ends the request now, work was done for it."""
        self._answered = True

    def refund(self, tokens: int) -> None:
        """Give back charged tokens that are not used, when the place is closed."""
        self._unused = min(self.charged, self._unused + tokens)

    def hold(self, size: int, field: str = "body") -> None:
        """Count `size` more bytes of the request or its reply. field: the part of the request that they come from.

        Raises RESOURCE_EXHAUSTED if the tenant has too many under way, or INVALID_ARGUMENT if they never fit.
        """
        limit = self._quotas.max_bytes
        if self._bytes + size > limit:
            raise invalid(
                field,
                f"the request and its reply come to {self._bytes + size} bytes, and a tenant may have {limit} under "
                "way: ask for less, or split the request",
            )
        if self._account.bytes + size > limit:
            raise self._quotas.refusal(
                self._tenant,
                LIMITS[2],
                f"the tenant {self._tenant.name!r} has {self._account.bytes} bytes of requests and replies under way, "
                f"{size} more would pass the limit of {limit}: read the replies, or send fewer requests at a time",
                self._account.seconds,
            )
        self._bytes += size
        self._account.bytes += size

    def close(self) -> None:
        """Give the place back: the reply is sent or given up. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        account = self._account
        account.running -= 1
        account.bytes -= self._bytes
        cost = self.charged - self._unused
        if self._refused or not self.charged:
            cost = max(cost, self._spent)
        account.tokens += self.charged + self._prepaid - cost
        if self._admitted:  # how fast requests are refused says nothing of how long one takes
            account.seconds = 0.8 * account.seconds + 0.2 * (self._quotas.clock() - self._started)


class Quotas:
    """The accounts of all tenants. Not thread-safe.

    clock: returns monotonic seconds. max_bytes: of one tenant's requests and replies under way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_TENANT_BYTES) -> None:
        self.clock = clock
        self.max_bytes = max_bytes
        self._accounts: dict[str, _Account] = {}

    def open_place(self, tenant: Tenant, *, caller: str = "", size: int = 0, remaining: float | None = None) -> Place:
        """A place for a request, of which nothing is charged yet. Its owner must close it.

        caller, size: name the request, and stay the same when it is sent again; without a caller the request gets no
        place in line. remaining: seconds to its deadline; a request that cannot come back in time gets no place either.

        Raises RESOURCE_EXHAUSTED, with the seconds until the retry, if the tenant has too many requests under way.
        """
        account, key = self._account(tenant), _key(caller, size)
        self._check_slots(tenant, account, key, remaining, self.clock())
        return Place(self, account, tenant, key, remaining)

    @contextmanager
    def admit(
        self, tenant: Tenant, tokens: int, *, caller: str = "", remaining: float | None = None
    ) -> Iterator[Place]:
        """Count a request of `tokens` against its tenant while the context lasts. See `open_place` and `Place.charge`.

        Raises RESOURCE_EXHAUSTED, with the seconds until the retry, if the tenant is over a limit.
        """
        place = self.open_place(tenant, caller=caller, size=tokens, remaining=remaining)
        try:
            with place.charging(tokens):
                yield place
        finally:
            place.close()

    def charge(self, tenant: Tenant, tokens: int, *, caller: str = "", remaining: float | None = None) -> None:
        """Take tokens from the bucket. Raises RESOURCE_EXHAUSTED as `admit` does."""
        self.charge_key(tenant, tokens, _key(caller, tokens), remaining)

    def charge_key(self, tenant: Tenant, tokens: int, key: int | None, remaining: float | None) -> None:
        """`charge`, for a caller with this key in line."""
        if tenant.tokens_per_minute is None or not tokens:
            return
        account, now = self._account(tenant), self.clock()
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
        raise self.refusal(
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
            account.fill(tenant.tokens_per_minute, self.clock())
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
        raise self.refusal(
            tenant,
            LIMITS[1],
            f"the tenant {tenant.name!r} has {account.running} requests under way, and may have "
            f"{tenant.max_concurrent}: send fewer at a time, or ask the operator for more",
            seconds,
        )

    def refusal(self, tenant: Tenant, limit: str, message: str, seconds: float) -> ServiceError:
        """RESOURCE_EXHAUSTED for the caller of a tenant over a limit, counted."""
        self._account(tenant).refused += 1
        REFUSALS.labels(tenant.name, limit).inc()
        return ServiceError(status_pb2.RESOURCE_EXHAUSTED, message, retry_seconds=seconds, reason=QUOTA)

    def _account(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = _Account(float(tenant.tokens_per_minute or 0), self.clock())
            self._accounts[tenant.name] = account
            for limit in LIMITS:  # Prometheus sees no growth in a count that begins at 1
                REFUSALS.labels(tenant.name, limit)
        return account


def _key(caller: str, size: int) -> int | None:
    """A caller's key in line: a hash, because a request id may be long."""
    return hash((caller, size)) if caller else None


def _returns(seconds: float, remaining: float | None) -> bool:
    return remaining is None or seconds < remaining
