"""Quotas: no tenant gets more than its tokens a minute, and who comes back when told is let in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_service.errors import Code, ServiceError, invalid, unavailable
from vold_service.quota import Quotas
from vold_service.tenants import OPEN, Tenant

TENANT = Tenant("maths", tokens_per_minute=6000)  # 100 a second


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(quotas: Quotas, tenant: Tenant, tokens: int) -> float:
    """Seconds after which the tenant may come back; 0 where it was let in."""
    try:
        quotas.charge(tenant, tokens)
    except ServiceError as error:
        return error.retry_seconds
    return 0.0


def test_a_refusal_says_who_and_how_much():
    quotas = Quotas(Clock())
    quotas.charge(TENANT, 6000)
    with pytest.raises(ServiceError, match=r"'maths' has used its 6000 tokens a minute: come back in 1\.50 s") as error:
        quotas.charge(TENANT, 150)
    assert error.value.code == Code.RESOURCE_EXHAUSTED
    assert error.value.retry_seconds == pytest.approx(1.5)


def test_a_bucket_holds_a_minute_and_fills_evenly():
    clock = Clock()
    quotas = Quotas(clock)
    assert refused(quotas, TENANT, 6000) == 0
    assert refused(quotas, TENANT, 300) == pytest.approx(3)
    clock.now += 3
    assert refused(quotas, TENANT, 300) == 0
    clock.now += 1e6
    assert refused(quotas, TENANT, 6000) == 0
    assert refused(quotas, TENANT, 1) > 0


def test_more_than_a_minute_waits_for_a_full_bucket_and_leaves_a_debt():
    clock = Clock()
    quotas = Quotas(clock)
    assert refused(quotas, TENANT, 1000) == 0
    assert refused(quotas, TENANT, 12000) == pytest.approx(10)
    clock.now += 10
    assert refused(quotas, TENANT, 12000) == 0
    assert refused(quotas, TENANT, 100) == pytest.approx(61)


def test_tenants_do_not_share_a_bucket_and_no_quota_is_no_limit():
    quotas = Quotas(Clock())
    assert refused(quotas, TENANT, 6000) == 0
    assert refused(quotas, Tenant("other", tokens_per_minute=100), 100) == 0
    assert refused(quotas, OPEN, 10**12) == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 9000)),
        min_size=1,
        max_size=60,
    )
)
def test_in_every_window_at_most_a_minute_and_what_filled_it(arrivals):
    clock = Clock()
    quotas = Quotas(clock)
    admitted: list[tuple[float, int]] = []
    for pause, tokens in arrivals:
        clock.now += pause
        if refused(quotas, TENANT, tokens) == 0:
            admitted.append((clock.now, tokens))
    for first in range(len(admitted)):
        total = 0
        for at, tokens in admitted[first:]:
            # The last one of a window may be larger than the bucket; the debt it leaves is for what comes after.
            assert total + min(tokens, 6000) <= 6000 + 100 * (at - admitted[first][0]) + 1
            total += tokens


@given(st.integers(6000, 9000), st.lists(st.integers(1, 15000), min_size=1, max_size=20))
def test_who_comes_back_when_told_is_let_in(used, requests):
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, used)
    delays = [refused(quotas, TENANT, tokens) for tokens in requests]
    assert delays == sorted(delays)
    for delay, tokens in zip(delays, requests, strict=True):
        clock.now = 1000.0 + delay
        assert refused(quotas, TENANT, tokens) == 0


def test_a_place_is_free_again_when_its_request_ends():
    clock = Clock()
    quotas = Quotas(clock)
    tenant = Tenant("one", max_concurrent=1)
    with quotas.admit(tenant, 1):
        with pytest.raises(ServiceError, match="1 requests under way") as first, quotas.admit(tenant, 1):
            pass
        with pytest.raises(ServiceError) as second, quotas.admit(tenant, 1):
            pass
        assert 0 < first.value.retry_seconds < second.value.retry_seconds
        clock.now += 100
    with pytest.raises(ZeroDivisionError), quotas.admit(tenant, 1):
        raise ZeroDivisionError
    with quotas.admit(tenant, 1):
        with pytest.raises(ServiceError) as third, quotas.admit(tenant, 1):
            pass
        assert third.value.retry_seconds > first.value.retry_seconds  # a request has been seen to take 100 s


def test_who_finds_no_place_pays_nothing():
    quotas = Quotas(Clock())
    tenant = Tenant("one", max_concurrent=1, tokens_per_minute=100)
    with quotas.admit(tenant, 60), pytest.raises(ServiceError), quotas.admit(tenant, 40):
        pass
    assert refused(quotas, tenant, 40) == 0


def test_what_came_to_nothing_is_paid_back_and_what_was_wrong_is_not():
    quotas = Quotas(Clock())
    with pytest.raises(ServiceError), quotas.admit(TENANT, 6000):
        raise unavailable("full")
    with pytest.raises(ServiceError), quotas.admit(TENANT, 6000):
        raise invalid("ids", "wrong")
    assert refused(quotas, TENANT, 1) > 0


@given(st.integers(0, 6000), st.lists(st.integers(0, 9000)))
def test_a_refund_gives_back_at_most_what_was_paid(tokens, refunds):
    quotas = Quotas(Clock())
    with quotas.admit(TENANT, tokens) as admission:
        for refund in refunds:
            admission.refund(refund)
    left = 6000 - tokens + min(tokens, sum(refunds))
    assert refused(quotas, TENANT, left) == 0
    assert refused(quotas, TENANT, 10) > 0
