"""Quotas: no tenant gets more than its tokens a minute, a refusal costs nothing, and who comes back is admitted."""

import contextlib
import heapq
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from vold_service.errors import Code, ServiceError, invalid, unavailable
from vold_service.line import GRACE_SECONDS, MAX_CALLERS, Line
from vold_service.quota import Quotas
from vold_service.tenants import OPEN_TENANT, Tenant

TENANT = Tenant("maths", tokens_per_minute=6000)  # 100 a second


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def retry_delay(quotas: Quotas, tenant: Tenant, tokens: int, caller: str = "", remaining: float | None = None) -> float:
    """Seconds until the retry of a refused request; 0 for an admitted one."""
    try:
        quotas.charge(tenant, tokens, caller=caller, remaining=remaining)
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
        st.tuples(st.floats(0, 30), st.integers(1, 9000)),
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


def test_refusals_of_requests_that_do_not_come_back_cost_nothing():
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, 6000)
    for number in range(3):
        assert retry_delay(quotas, TENANT, 3000, f"colleague-{number}") == pytest.approx(30)
    assert retry_delay(quotas, TENANT, 3000, "run") == pytest.approx(30)
    assert retry_delay(quotas, TENANT, 100, "run's small") == pytest.approx(1)
    clock.now += 30
    assert retry_delay(quotas, TENANT, 3000, "run") == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 9000)), max_size=30), st.integers(1, 6000))
def test_refusals_without_a_return_change_no_later_delay(refused, tokens):
    clock, lone_clock = Clock(), Clock()
    quotas, lone = Quotas(clock), Quotas(lone_clock)
    quotas.charge(TENANT, 12000)  # in debt for a minute: all that follows is refused
    lone.charge(TENANT, 12000)
    for number, (pause, size) in enumerate(refused):
        clock.now += min(pause, 60 / len(refused))
        assert retry_delay(quotas, TENANT, size, f"other-{number}") > 0
    lone_clock.now = clock.now
    assert retry_delay(quotas, TENANT, tokens, "mine") == pytest.approx(retry_delay(lone, TENANT, tokens, "mine"))


@given(st.integers(6000, 9000), st.lists(st.integers(1, 15000), min_size=1, max_size=20))
def test_requests_that_come_back_at_their_times_are_refused_at_most_twice(used, requests):
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, used)
    refusals = [0] * len(requests)
    order = count()
    coming = [(clock.now, next(order), number) for number in range(len(requests))]
    while coming:
        clock.now, _, number = heapq.heappop(coming)
        if delay := retry_delay(quotas, TENANT, requests[number], f"caller-{number}"):
            refusals[number] += 1
            heapq.heappush(coming, (clock.now + delay, next(order), number))
    assert max(refusals) <= 2
    assert clock.now - 1000 <= (used + sum(requests) - 6000) / 100 + 60 + 1e-3  # the tokens are spent without pauses


def test_a_large_request_does_not_wait_for_ever_behind_a_stream_of_small_ones():
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, 6000)
    small = count()
    delay, attempts, admitted_small = retry_delay(quotas, TENANT, 6000, "large"), 1, 0
    assert delay == pytest.approx(60)
    while delay:
        returns = clock.now + delay
        while clock.now < returns - 0.5:
            clock.now += 0.5
            admitted_small += retry_delay(quotas, TENANT, 50, f"small-{next(small)}") == 0
        clock.now = returns
        delay = retry_delay(quotas, TENANT, 6000, "large")
        attempts += 1
    assert attempts == 3
    assert admitted_small > 50  # until the large request came back in vain, it held no small one up
    assert clock.now - 1000 <= 125


@given(
    prepaid=st.integers(0, 2000),
    spent=st.integers(0, 3000),
    charged=st.integers(0, 3000) | st.none(),
    unused=st.integers(0, 4000),
    ended=st.sampled_from(["served", "refused", "refused after a part of its reply", "wrong"]),
)
def test_a_request_costs_its_tokens_or_if_it_is_refused_the_texts_that_were_read(
    prepaid, spent, charged, unused, ended
):
    quotas = Quotas(Clock())
    place = quotas.open_place(TENANT)
    place.prepay(prepaid)
    place.spend(spent)
    spent = min(spent, prepaid)
    cost = spent
    if charged is not None:
        error = {"served": None, "wrong": invalid("f", "m")}.get(ended, unavailable("busy"))
        with contextlib.suppress(ServiceError), place.charging(charged):
            if ended == "refused after a part of its reply":
                place.answered()
            place.refund(unused)
            if error is not None:
                raise error
        cost = max(charged - unused, 0) if charged else spent
        if ended == "refused":
            cost = spent
    place.close()
    place.close()
    available = TENANT.tokens_per_minute - cost
    assert retry_delay(quotas, TENANT, available) == 0
    assert retry_delay(quotas, TENANT, 1) > 0


def test_a_caller_that_had_a_place_and_does_not_come_back_loses_it():
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, 6000)
    assert retry_delay(quotas, TENANT, 3000, "gone") == pytest.approx(30)
    clock.now += 30
    quotas.charge(TENANT, 3000)
    assert retry_delay(quotas, TENANT, 3000, "gone") == pytest.approx(30)
    with pytest.raises(ServiceError, match=r"come back in 31\.00 s, after 1 requests that wait already"):
        quotas.charge(TENANT, 100)
    clock.now += 30 + GRACE_SECONDS + 0.1
    assert retry_delay(quotas, TENANT, 4500) == 0  # no token was lost


@pytest.mark.parametrize(
    ("caller", "remaining", "pause"),
    [("", None, 30), ("short", 20.0, 30), ("early", None, 10), ("late", None, 30 + GRACE_SECONDS + 0.1)],
)
def test_who_cannot_or_does_not_come_back_at_its_time_has_no_place(caller, remaining, pause):
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(TENANT, 6000)
    assert retry_delay(quotas, TENANT, 3000, caller, remaining) == pytest.approx(30)
    clock.now += pause
    quotas.charge(TENANT, 100 * int(pause))
    assert retry_delay(quotas, TENANT, 3000, caller, remaining) > 0
    assert retry_delay(quotas, TENANT, 100, "other") <= 1


def test_the_line_is_bounded():
    line = Line()
    for attempt in range(2):
        for key in range(3 * MAX_CALLERS):
            line.refuse(key, 1, due=1.0, now=float(attempt), returns=True)
        assert len(line._refused) <= MAX_CALLERS
        assert len(line._places) <= MAX_CALLERS
    for key in range(MAX_CALLERS):
        line.refuse(key, 1, due=1.0, now=0.0, returns=True)
    for key in range(MAX_CALLERS):
        line.refuse(key, 1, due=2.0, now=1.0, returns=True)
    assert line.ahead(None, 1.0)[0] <= MAX_CALLERS
    assert line.ahead(None, 2.0 + GRACE_SECONDS + 1) == (0, 0)


def slot_delay(quotas: Quotas, tenant: Tenant, caller: str = "") -> float:
    try:
        with quotas.admit(tenant, 1, caller=caller):
            return 0.0
    except ServiceError as error:
        return error.retry_seconds


def test_a_slot_is_free_after_its_request_has_ended():
    clock = Clock()
    quotas = Quotas(clock)
    tenant = Tenant("one", max_concurrent=1)
    with quotas.admit(tenant, 1):
        with pytest.raises(ServiceError, match="1 requests under way") as first, quotas.admit(tenant, 1):
            pass
        # A refusal does not move the time of the next one.
        assert slot_delay(quotas, tenant, "a") == slot_delay(quotas, tenant, "b") == first.value.retry_seconds > 0
        clock.now += 100
    with pytest.raises(ZeroDivisionError), quotas.admit(tenant, 1):
        raise ZeroDivisionError
    with quotas.admit(tenant, 1):
        assert slot_delay(quotas, tenant) > first.value.retry_seconds  # the first request took 100 s


def test_a_slot_is_kept_for_the_caller_that_came_back_in_vain():
    clock = Clock()
    quotas = Quotas(clock)
    tenant = Tenant("one", max_concurrent=1)
    with quotas.admit(tenant, 1):
        delay = slot_delay(quotas, tenant, "patient")
        slot_delay(quotas, tenant, "gone")
        clock.now += delay
        delay = slot_delay(quotas, tenant, "patient")
        assert slot_delay(quotas, tenant, "gone") == pytest.approx(2 * delay)
    assert slot_delay(quotas, tenant, "newcomer") > 0
    clock.now += delay
    assert slot_delay(quotas, tenant, "patient") == 0
    assert slot_delay(quotas, tenant, "newcomer") > 0  # the second in line is next
    clock.now += delay + GRACE_SECONDS + 0.1
    assert slot_delay(quotas, tenant, "newcomer") == 0


def test_one_slot_alone_is_kept_and_the_others_are_used():
    clock = Clock()
    quotas = Quotas(clock)
    tenant = Tenant("two", max_concurrent=2)
    with quotas.admit(tenant, 1), quotas.admit(tenant, 1):
        delay = max(slot_delay(quotas, tenant, f"{number}") for number in range(5))
        clock.now += delay
        for number in range(5):
            slot_delay(quotas, tenant, f"{number}")
    assert slot_delay(quotas, tenant, "newcomer") == 0
    with quotas.admit(tenant, 1):
        assert slot_delay(quotas, tenant, "newcomer") > 0


def test_a_place_for_tokens_outlasts_the_wait_for_a_slot():
    clock = Clock()
    quotas = Quotas(clock)
    tenant = Tenant("both", max_concurrent=1, tokens_per_minute=6000)
    quotas.charge(tenant, 6000)
    assert retry_delay(quotas, tenant, 3000, "patient") == pytest.approx(30)
    clock.now += 30
    quotas.charge(tenant, 3000)
    assert retry_delay(quotas, tenant, 3000, "patient") == pytest.approx(30)
    clock.now += 30 + GRACE_SECONDS - 0.1
    with (
        quotas.admit(tenant, 0),
        pytest.raises(ServiceError, match="1 requests under way"),
        quotas.admit(tenant, 3000, caller="patient"),
    ):
        pass
    clock.now += 1
    assert retry_delay(quotas, tenant, 2000) > 0  # 3000 tokens are kept of those of 46 s
    assert retry_delay(quotas, tenant, 3000, "patient") == 0


def test_a_quota_says_what_is_left():
    clock = Clock()
    quotas = Quotas(clock)
    tenant = Tenant("maths", tokens_per_minute=6000, max_concurrent=2)
    assert quotas.quota(tenant).tokens_left == 6000
    with quotas.admit(tenant, 5000):
        assert retry_delay(quotas, tenant, 2000) > 0
        clock.now += 5
        quota = quotas.quota(tenant)
    assert (quota.tenant, quota.tokens_per_minute, quota.max_concurrent) == ("maths", 6000, 2)
    assert (quota.tokens_left, quota.running, quota.refused) == (1500, 1, 1)
    assert not quota.HasField("max_sequence")
    without = quotas.quota(OPEN_TENANT)
    assert not any(without.HasField(name) for name in ("tokens_per_minute", "max_concurrent", "tokens_left"))


def test_a_tenant_is_in_the_count_of_refusals_from_its_first_request_on():
    Quotas(Clock()).charge(Tenant("counted", tokens_per_minute=6000), 1)
    for limit in ("tokens_per_minute", "max_concurrent"):
        labels = {"tenant": "counted", "limit": limit}
        assert REGISTRY.get_sample_value("vold_tenant_quota_refusals_total", labels) == 0


def test_every_refusal_says_that_the_quota_is_the_reason():
    quotas = Quotas(Clock())
    tenant = Tenant("both", max_concurrent=1, tokens_per_minute=100)
    with quotas.admit(tenant, 100), pytest.raises(ServiceError) as slots, quotas.admit(tenant, 1):
        pass
    with pytest.raises(ServiceError) as tokens:
        quotas.charge(tenant, 1)
    for refused in (slots.value, tokens.value):
        assert (refused.reason, refused.status().reason) == ("quota", "quota")


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


@pytest.mark.parametrize("answered", [False, True])
def test_a_request_is_paid_back_whole_only_if_no_part_of_its_reply_was_there(answered):
    """A caller that reads too slowly is refused in the middle, when its tokens are computed."""
    quotas = Quotas(Clock())

    def generate() -> None:
        with quotas.admit(TENANT, 6000) as place:
            place.refund(1000)
            if answered:
                place.answered()
            raise ServiceError(Code.RESOURCE_EXHAUSTED, "read faster")

    with pytest.raises(ServiceError):
        generate()
    assert quotas.quota(TENANT).tokens_left == (1000 if answered else 6000)
