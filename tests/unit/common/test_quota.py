"""Quotas: no tenant gets more than its tokens a minute, and a retry at the suggested time is admitted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_service.errors import Code, ServiceError, invalid, unavailable
from vold_service.quota import Quotas
from vold_service.tenants import OPEN_TENANT, Tenant

TENANT = Tenant("maths", tokens_per_minute=6000)  # 100 a second


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def retry_delay(quotas: Quotas, tenant: Tenant, tokens: int) -> float:
    """Seconds until the retry of a refused request; 0 for an admitted one."""
    try:
        quotas.charge(tenant, tokens)
    except ServiceError as error:
        return error.retry_seconds
    return 0.0


def test_a_refusal_names_the_tenant_and_its_quota():
    quotas = Quotas(Clock())
    quotas.charge(TENANT, 6000)
    with pytest.raises(ServiceError, match=r"'maths' has used its 6000 tokens a minute: come back in 1\.50 s") as error:
        quotas.charge(TENANT, 150)
    assert error.value.code == Code.RESOURCE_EXHAUSTED
    assert error.value.retry_seconds == pytest.approx(1.5)


def test_a_bucket_holds_a_minute_and_fills_evenly():
    clock = Clock()
    quotas = Quotas(clock)
    assert retry_delay(quotas, TENANT, 6000) == 0
    assert retry_delay(quotas, TENANT, 300) == pytest.approx(3)
    clock.now += 3
    assert retry_delay(quotas, TENANT, 300) == 0
    clock.now += 1e6
    assert retry_delay(quotas, TENANT, 6000) == 0
    assert retry_delay(quotas, TENANT, 1) > 0


def test_a_request_over_the_quota_waits_for_a_full_bucket_and_leaves_it_negative():
    clock = Clock()
    quotas = Quotas(clock)
    assert retry_delay(quotas, TENANT, 1000) == 0
    assert retry_delay(quotas, TENANT, 12000) == pytest.approx(10)
    clock.now += 10
    assert retry_delay(quotas, TENANT, 12000) == 0
    assert retry_delay(quotas, TENANT, 100) == pytest.approx(61)


def test_tenants_do_not_share_a_bucket_and_no_quota_is_no_limit():
    quotas = Quotas(Clock())
    assert retry_delay(quotas, TENANT, 6000) == 0
    assert retry_delay(quotas, Tenant("other", tokens_per_minute=100), 100) == 0
    assert retry_delay(quotas, OPEN_TENANT, 10**12) == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 9000)),
        min_size=1,
        max_size=60,
    )
)
def test_in_every_window_at_most_a_full_bucket_and_its_refill(arrivals):
    clock = Clock()
    quotas = Quotas(clock)
    admitted: list[tuple[float, int]] = []
    for pause, tokens in arrivals:
        clock.now += pause
        if retry_delay(quotas, TENANT, tokens) == 0:
            admitted.append((clock.now, tokens))
    for first in range(len(admitted)):
        total = 0
        for at, tokens in admitted[first:]:
            # The last request of a window may exceed the bucket; it delays the requests after the window.
            assert total + min(tokens, 6000) <= 6000 + 100 * (at - admitted[first][0]) + 1
            total += tokens


@given(st.integers(6000, 9000), st.lists(st.integers(1, 15000), min_size=1, max_size=20))
def test_retries_at_the_suggested_times_are_admitted(used, requests):
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, used)
    delays = [retry_delay(quotas, TENANT, tokens) for tokens in requests]
    assert delays == sorted(delays)
    for delay, tokens in zip(delays, requests, strict=True):
        clock.now = 1000.0 + delay
        assert retry_delay(quotas, TENANT, tokens) == 0


def test_a_slot_is_free_after_its_request_has_ended():
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
        assert third.value.retry_seconds > first.value.retry_seconds  # the first request took 100 s


def test_a_request_over_max_concurrent_is_not_charged():
    quotas = Quotas(Clock())
    tenant = Tenant("one", max_concurrent=1, tokens_per_minute=100)
    with quotas.admit(tenant, 60), pytest.raises(ServiceError), quotas.admit(tenant, 40):
        pass
    assert retry_delay(quotas, tenant, 40) == 0


def test_an_unavailable_service_refunds_the_request_and_an_invalid_request_is_charged():
    quotas = Quotas(Clock())
    with pytest.raises(ServiceError), quotas.admit(TENANT, 6000):
        raise unavailable("full")
    with pytest.raises(ServiceError), quotas.admit(TENANT, 6000):
        raise invalid("ids", "wrong")
    assert retry_delay(quotas, TENANT, 1) > 0


@given(st.integers(0, 6000), st.lists(st.integers(0, 9000)))
def test_a_refund_is_at_most_the_charge(tokens, refunds):
    quotas = Quotas(Clock())
    with quotas.admit(TENANT, tokens) as admission:
        for refund in refunds:
            admission.refund(refund)
    left = 6000 - tokens + min(tokens, sum(refunds))
    assert retry_delay(quotas, TENANT, left) == 0
    assert retry_delay(quotas, TENANT, 10) > 0
