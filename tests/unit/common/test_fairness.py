"""Fair shares, in counted work and simulated time: bounds that hold whatever tenants send."""

import heapq
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_service.fairness import FairQueue, FairShare, QueueParts
from vold_service.tenants import Tenant

WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 5.0])


def worst_difference(served: list[tuple[str, float]], first: Tenant, second: Tenant) -> float:
    """The most by which two tenants' work differs over any window, each divided by its weight."""
    height = low = high = worst = 0.0
    for name, amount in served:
        if name == first.name:
            height += amount / first.weight
        elif name == second.name:
            height -= amount / second.weight
        low, high = min(low, height), max(high, height)
        worst = max(worst, high - low)
    return worst


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(WEIGHTS, min_size=2, max_size=4),
    costs=st.lists(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6), min_size=4, max_size=4),
    estimates=st.lists(st.floats(0.001, 1.0), min_size=4, max_size=4),
    workers=st.integers(1, 4),
)
def test_backlogged_tenants_get_seconds_by_weight_whatever_their_items_take(weights, costs, estimates, workers):
    """Items are charged by an estimate that is wrong, and what they took when they are done."""
    queue: FairQueue[float] = FairQueue()
    tenants = [Tenant(str(number), weight=weight) for number, weight in enumerate(weights)]
    items = {tenant.name: itertools.cycle(each) for tenant, each in zip(tenants, costs, strict=False)}
    guess = {tenant.name: each for tenant, each in zip(tenants, estimates, strict=False)}
    running: list[tuple[float, int, Tenant, float]] = []
    served: list[tuple[str, float]] = []
    now, number = 0.0, 0
    for tenant in tenants:
        for job in range(3):
            queue.put(tenant, next(items[tenant.name]), guess[tenant.name], job=job)
    while len(served) < 400:
        while len(running) < workers:
            waiting = queue.first()
            assert waiting is not None
            queue.take(waiting, waiting.cost)
            number += 1
            heapq.heappush(running, (now + waiting.item, number, waiting.tenant, waiting.item))
            queue.put(waiting.tenant, next(items[waiting.tenant.name]), waiting.cost, job=waiting.job)
        now, _, tenant, took = heapq.heappop(running)
        queue.share.charge(tenant, took - guess[tenant.name])
        served.append((tenant.name, took))
    largest = max(max(each) for each in [*costs, estimates])
    for first, second in itertools.combinations(tenants, 2):
        bound = 2 * (workers + 1) * largest / min(first.weight, second.weight)
        assert worst_difference(served, first, second) <= bound


@settings(deadline=None, max_examples=60)
@given(
    own=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20),
    weights=st.lists(WEIGHTS, min_size=2, max_size=4),
    others=st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    jobs=st.integers(1, 30),
    before=st.integers(0, 50),
)
def test_an_honest_request_is_done_within_its_bound_however_others_split_theirs(own, weights, others, jobs, before):
    queue: FairQueue[float] = FairQueue()
    me, *rest = (Tenant(str(number), weight=weight) for number, weight in enumerate(weights))
    served: Counter[str] = Counter()

    def refill(tenant: Tenant, cost: float) -> None:
        for job in range(jobs):
            queue.put(tenant, cost, cost, job=(tenant.name, job), priority=job)

    def serve() -> float:
        waiting = queue.first()
        assert waiting is not None
        queue.take(waiting, waiting.cost)
        served[waiting.tenant.name] += 1
        if waiting.tenant is not me:
            queue.put(waiting.tenant, waiting.cost, waiting.cost, job=waiting.job, priority=waiting.priority)
        return waiting.cost

    for tenant, cost in zip(rest, others, strict=False):
        refill(tenant, cost)
    for _ in range(before):
        serve()
    for cost in own:
        queue.put(me, cost, cost, job="mine")
    spent = 0.0
    while served[me.name] < len(own):
        spent += serve()
    share = sum(tenant.weight for tenant in (me, *rest)) / me.weight
    assert spent <= sum(own) * share + max(own) * share + sum(others[: len(rest)]) + 1e-6


def test_a_priority_orders_the_work_of_its_own_tenant_alone():
    queue: FairQueue[str] = FairQueue()
    loud, quiet = Tenant("loud"), Tenant("quiet")
    for number in range(4):
        queue.put(loud, f"loud {number}", 1.0, job=number, priority=1000 + number)
        queue.put(quiet, f"quiet {number}", 1.0, job=number, priority=-number)
    taken = []
    while (waiting := queue.first()) is not None:
        queue.take(waiting, waiting.cost)
        taken.append(waiting.item)
    assert [item for item in taken if "loud" in item] == [f"loud {number}" for number in (3, 2, 1, 0)]
    assert [item for item in taken if "quiet" in item] == [f"quiet {number}" for number in range(4)]
    assert all({"loud", "quiet"} == {item.split()[0] for item in taken[at : at + 2]} for at in range(0, 8, 2))


@settings(deadline=None)
@given(
    puts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-1, 1), st.integers(1, 9)), max_size=30),
    dropped=st.sets(st.integers(0, 2)),
)
def test_each_tenants_work_comes_in_the_order_foretold_and_nothing_is_lost(puts, dropped):
    queue: FairQueue[int] = FairQueue()
    tenants = [Tenant(str(number), weight=1.0 + number) for number in range(3)]
    jobs = {}
    for number, (tenant, job, priority, cost) in enumerate(puts):
        jobs[number] = job
        queue.put(tenants[tenant], number, cost, job=job, priority=priority)
    for job in dropped:
        queue.drop(job)
    left = [number for number in jobs if jobs[number] not in dropped]
    assert len(queue) == len(left)
    foretold = [waiting.item for waiting, _ in queue.in_order()]
    taken = []
    while (waiting := queue.first()) is not None:
        queue.take(waiting, waiting.cost)
        if len(taken) % 3 == 1:  # as a worker that ends before it begins with an item
            queue.share.charge(waiting.tenant, -waiting.cost)
            queue.put_back(waiting)
            assert next(each for each, _ in queue.in_order() if each.tenant is waiting.tenant) is waiting
            queue.take(waiting, waiting.cost)
        taken.append(waiting.item)
    for tenant in range(3):
        assert [each for each in taken if puts[each][0] == tenant] == [
            each for each in foretold if puts[each][0] == tenant
        ]
    assert sorted(taken) == left
    assert not len(queue)


def test_a_tenant_that_was_away_has_no_claim_and_one_that_left_keeps_its_debt():
    share = FairShare()
    steady, visitor, splitter = Tenant("steady"), Tenant("visitor"), Tenant("splitter")
    share.enter(steady)
    for _ in range(10):
        share.charge(steady, 10.0)
    share.enter(visitor)
    assert share.claim(visitor)[0] == pytest.approx(90.0)  # where the last work for another began
    share.enter(splitter)
    share.charge(splitter, 500.0)
    share.leave(splitter)
    share.enter(splitter)
    assert share.claim(splitter)[0] == pytest.approx(590.0)
    assert not share.may_lead(splitter, 0.0, 400.0)
    assert share.may_lead(splitter, 0.0, 510.0)
    for tenant in (steady, visitor, splitter):
        share.leave(tenant)
    share.idle()
    share.enter(steady)
    assert share.claim(steady)[0] == share.claim(splitter)[0]


@settings(deadline=None)
@given(
    limit=st.integers(10, 1000),
    weights=st.lists(WEIGHTS, min_size=1, max_size=5),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 1000)), max_size=60),
)
def test_no_tenant_keeps_another_out_of_the_queue_and_the_queue_is_bounded(limit, weights, steps):
    parts = QueueParts(limit)
    tenants = [Tenant(str(number), weight=weight) for number, weight in enumerate(weights)]
    for number, amount in steps:
        tenant, amount = tenants[number % len(tenants)], min(amount, limit)
        if parts.excess(tenant, amount) <= 0:
            parts.add(tenant, amount)
        else:
            assert parts.held(tenant) + amount > parts.part(tenant)
            assert parts.held(tenant)
    assert parts.total == sum(parts.held(tenant) for tenant in tenants)
    assert parts.total <= 2 * limit * len(tenants)
    for tenant in tenants:
        parts.add(tenant, -parts.held(tenant))
        assert parts.excess(tenant, limit) <= 0
        assert parts.held(tenant) == 0
