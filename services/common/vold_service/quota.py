"""What a tenant may take: tokens a minute and requests at a time. Checked before any work is queued.

Tokens are a token bucket (https://en.wikipedia.org/wiki/Token_bucket) that holds a minute's worth and fills evenly. A
request for more than a whole bucket waits until it is full and leaves it in debt, so that it is slow instead of
impossible, and the tenant still gets no more than its tokens a minute in the long run.

Who is turned away is told when to come back, behind those who were turned away before: if all come back when they were
told, and nobody comes between, each is let in.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vold_proto.v1 import status_pb2

from vold_service.errors import ServiceError
from vold_service.tenants import Tenant

FIRST_GUESS_SECONDS = 1.0
"""How long a request of a tenant is taken to last before one has ended."""

REFUNDED = (status_pb2.RESOURCE_EXHAUSTED, status_pb2.UNAVAILABLE)
"""Errors of a request that came to nothing for a reason of the service's, so that it costs nothing: it will be sent
again. One that its caller gave up on, or that came too late, may have been computed."""


@dataclass(slots=True)
class _Account:
    """A tenant's state. tokens: in the bucket, at `at`. promised_until: when the last one who was turned away for want
    of tokens was told to come back; promised_tokens: what the bucket then holds, with its request paid for.
    slot_until: as promised_until, for want of a place. seconds: a running mean of how long requests last.
    """

    tokens: float
    at: float
    promised_until: float
    slot_until: float
    promised_tokens: float = 0.0
    running: int = 0
    seconds: float = FIRST_GUESS_SECONDS


@dataclass(slots=True)
class Admission:
    """A request that was let in. charged: tokens it has paid for; give back what it did not use with `refund`."""

    charged: int
    unused: int = 0

    def refund(self, tokens: int) -> None:
        self.unused = min(self.charged, self.unused + tokens)


class Quotas:
    """The accounts of all tenants. For one thread, as one event loop is.

    clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @contextmanager
    def admit(self, tenant: Tenant, tokens: int) -> Iterator[Admission]:
        """Count a request of `tokens` against its tenant for as long as the context lasts.

        Raises RESOURCE_EXHAUSTED, with the seconds after which to come back, where the tenant has to wait.
        """
        account = self._account(tenant)
        began = self._clock()
        if tenant.max_concurrent is not None and account.running >= tenant.max_concurrent:
            raise self._no_place(tenant, account, began)
        self.charge(tenant, tokens)
        admission = Admission(tokens)
        account.running += 1
        try:
            yield admission
        except ServiceError as error:
            if error.code in REFUNDED:
                admission.refund(tokens)
            raise
        finally:
            account.running -= 1
            account.seconds = 0.8 * account.seconds + 0.2 * (self._clock() - began)
            account.tokens += admission.unused

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Take tokens from the bucket. Raises RESOURCE_EXHAUSTED as `admit` does."""
        if tenant.tokens_per_minute is None:
            return
        account, now = self._account(tenant), self._clock()
        rate, most = tenant.tokens_per_minute / 60, float(tenant.tokens_per_minute)
        account.tokens = min(most, account.tokens + rate * (now - account.at))
        account.at = now
        missing = min(tokens, most) - account.tokens
        if missing <= 1e-6 * most:  # what rounding leaves must not cost a round trip
            account.tokens -= tokens
            return
        # The first to be turned away waits for what is missing now; who comes after, from when that one comes back.
        if account.promised_until > now:
            start, missing = account.promised_until, min(tokens, most) - account.promised_tokens
        else:
            start = now
        account.promised_until = start + missing / rate
        account.promised_tokens = min(tokens, most) - tokens
        raise ServiceError(
            status_pb2.RESOURCE_EXHAUSTED,
            f"the tenant {tenant.name!r} has used its {tenant.tokens_per_minute} tokens a minute: come back in "
            f"{account.promised_until - now:.2f} s, or ask the operator for more",
            retry_seconds=account.promised_until - now,
        )

    def _no_place(self, tenant: Tenant, account: _Account, now: float) -> ServiceError:
        assert tenant.max_concurrent is not None
        account.slot_until = max(now, account.slot_until) + account.seconds / tenant.max_concurrent
        return ServiceError(
            status_pb2.RESOURCE_EXHAUSTED,
            f"the tenant {tenant.name!r} has {account.running} requests under way, and may have "
            f"{tenant.max_concurrent}: send fewer at a time, or ask the operator for more",
            retry_seconds=account.slot_until - now,
        )

    def _account(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            now = self._clock()
            account = _Account(float(tenant.tokens_per_minute or 0), now, now, now)
            self._accounts[tenant.name] = account
        return account
