"""Fair shares of one resource among tenants: whose work is next, and how much of a bounded queue is whose.

Start-time fair queuing (Goyal, Vin and Cheng, 1996). A tenant is a flow. Its tag is what the resource has done for it,
divided by its weight: the waiting tenant with the lowest tag is next. The unit is the resource's own: positions of a
model, characters of text, seconds of a processor. Work is charged by an estimate when it begins, and the difference
when it is done, whether or not anyone still waits for it. A tenant that had nothing waiting goes on from the lowest tag
of those that have: it saves up no claim, and its debt stays until the resource has nothing to do.

Priorities order the work of one tenant and nothing else. Jobs of one tenant with one priority take turns.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vold_service.tenants import Tenant

T = TypeVar("T")

Claim = tuple[float, int]
"""A tenant's tag, and the number of its last charge: of equal tags the one charged longest ago is next."""


@dataclass(slots=True, eq=False)
class _Flow:
    """waiting: kinds of work that the tenant has waiting for the resource."""

    tenant: Tenant
    tag: float = 0.0
    charged: int = 0
    waiting: int = 0


class FairShare:
    """What one resource has done for each tenant. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flows: dict[str, _Flow] = {}
        self._waiting: dict[str, _Flow] = {}
        self._virtual_time = 0.0
        self._charges = 0

    def enter(self, tenant: Tenant) -> None:
        """The tenant has work waiting. Called once for each queue that it waits in, until `leave`."""
        with self._lock:
            flow = self._flow(tenant)
            flow.tenant = tenant  # its weight may have changed since
            if not flow.waiting:
                flow.tag = max(flow.tag, self._virtual_time)
                self._waiting[tenant.name] = flow
            flow.waiting += 1

    def leave(self, tenant: Tenant) -> None:
        """The tenant has no more work waiting in one of the queues."""
        with self._lock:
            flow = self._flow(tenant)
            flow.waiting -= 1
            if not flow.waiting:
                del self._waiting[tenant.name]

    def idle(self) -> None:
        """The resource has no work: no tenant has to wait, so no tenant owes anything."""
        with self._lock:
            self._virtual_time = max((flow.tag for flow in self._flows.values()), default=0.0)

    def charge(self, tenant: Tenant, cost: float) -> None:
        """Charge work. A negative cost gives back what an estimate was too high by."""
        self.charge_all(((tenant, cost),))

    def charge_all(self, costs: Iterable[tuple[Tenant, float]]) -> None:
        """Charge work that is done at once for several tenants."""
        with self._lock:
            behind = min([flow.tag for flow in self._waiting.values()], default=math.inf)
            flows = [(self._flow(tenant), cost) for tenant, cost in costs if cost]
            for flow, cost in flows:
                # The time is the tag of the tenant that is furthest behind, of those that wait or are served.
                if cost > 0:
                    self._virtual_time = max(self._virtual_time, min(behind, flow.tag))
                flow.tag += cost / flow.tenant.weight
                self._charges += 1
                flow.charged = self._charges

    def claim(self, tenant: Tenant, ahead: float = 0.0) -> Claim:
        """The tenant's claim once `ahead` more is charged: the lowest is next."""
        with self._lock:
            flow = self._flow(tenant)
            return flow.tag + ahead / flow.tenant.weight, flow.charged

    def may_lead(self, tenant: Tenant, ahead: float, most: float) -> bool:
        """Whether the tenant, with `ahead` more charged, leads every other waiting tenant by at most `most`."""
        with self._lock:
            own = self._flow(tenant)
            others = [flow.tag for flow in self._waiting.values() if flow is not own]
            return not others or own.tag + (ahead - most) / own.tenant.weight <= min(others)

    def _flow(self, tenant: Tenant) -> _Flow:
        flow = self._flows.get(tenant.name)
        if flow is None:
            flow = self._flows[tenant.name] = _Flow(tenant, self._virtual_time)
        return flow


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """An item in a queue. cost: what it will take, by estimate."""

    tenant: Tenant
    job: Hashable
    priority: int
    item: T
    cost: float


@dataclass(slots=True, eq=False)
class _Line(Generic[T]):
    """The items of one tenant, by priority and job; the job whose turn is next comes first."""

    tenant: Tenant
    jobs: dict[int, OrderedDict[Hashable, deque[Waiting[T]]]] = field(default_factory=dict)


class FairQueue(Generic[T]):
    """Waiting items of many tenants for one resource. Not thread-safe: it belongs to one thread."""

    def __init__(self, share: FairShare | None = None) -> None:
        """share: of the resource, if other queues wait for it too."""
        self.share = share or FairShare()
        self._lines: dict[str, _Line[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, tenant: Tenant, item: T, cost: float, *, job: Hashable, priority: int = 0) -> None:
        waiting = Waiting(tenant, job, priority, item, cost)
        self._queue_of(waiting).append(waiting)
        self._count += 1

    def first(self) -> Waiting[T] | None:
        """The next item."""
        if not self._lines:
            return None
        lines = self._lines.values()
        line = next(iter(lines)) if len(lines) == 1 else min(lines, key=lambda line: self.share.claim(line.tenant))
        jobs = line.jobs[max(line.jobs)]
        return next(iter(jobs.values()))[0]

    def in_order(self, ahead: Mapping[str, float] | None = None) -> Iterator[tuple[Waiting[T], float]]:
        """The items in the order in which they would be taken, each with what its tenant has ahead of it.

        ahead: by tenant's name, what it is to be charged for work under way.
        """
        charges = dict(ahead or {})
        lines = {name: (line.tenant, _line_order(line)) for name, line in self._lines.items()}
        while lines:
            name = min(lines, key=lambda name: self.share.claim(lines[name][0], charges.get(name, 0.0)))
            waiting = next(lines[name][1], None)
            if waiting is None:
                del lines[name]
                continue
            yield waiting, charges.get(name, 0.0)
            charges[name] = charges.get(name, 0.0) + waiting.cost

    def take(self, waiting: Waiting[T], cost: float = 0.0) -> None:
        """Remove an item, the first of its job, and charge `cost` to its tenant."""
        line = self._lines[waiting.tenant.name]
        jobs = line.jobs[waiting.priority]
        items = jobs[waiting.job]
        assert items[0] is waiting, "a job's items are taken in their order"
        items.popleft()
        jobs.move_to_end(waiting.job)
        self._count -= 1
        self.share.charge(waiting.tenant, cost)
        if not items:
            self._forget(line, waiting.priority, waiting.job)

    def put_back(self, waiting: Waiting[T]) -> None:
        """Put a taken item back to the head of its job, whose turn is next."""
        items = self._queue_of(waiting)
        items.appendleft(waiting)
        self._lines[waiting.tenant.name].jobs[waiting.priority].move_to_end(waiting.job, last=False)
        self._count += 1

    def drop(self, job: Hashable) -> int:
        """Remove the items of a job. Returns their number."""
        dropped = 0
        for line in list(self._lines.values()):
            for priority in [priority for priority, jobs in line.jobs.items() if job in jobs]:
                dropped += len(line.jobs[priority][job])
                self._forget(line, priority, job)
        self._count -= dropped
        return dropped

    def clear(self) -> None:
        for line in self._lines.values():
            self.share.leave(line.tenant)
        self._lines.clear()
        self._count = 0

    def tenants(self) -> list[Tenant]:
        """The tenants with anything in the queue."""
        return [line.tenant for line in self._lines.values()]

    def _queue_of(self, waiting: Waiting[T]) -> deque[Waiting[T]]:
        line = self._lines.get(waiting.tenant.name)
        if line is None:
            line = self._lines[waiting.tenant.name] = _Line(waiting.tenant)
            self.share.enter(waiting.tenant)
        return line.jobs.setdefault(waiting.priority, OrderedDict()).setdefault(waiting.job, deque())

    def _forget(self, line: _Line[T], priority: int, job: Hashable) -> None:
        del line.jobs[priority][job]
        if not line.jobs[priority]:
            del line.jobs[priority]
        if not line.jobs:
            del self._lines[line.tenant.name]
            self.share.leave(line.tenant)


def _line_order(line: _Line[T]) -> Iterator[Waiting[T]]:
    for priority in sorted(line.jobs, reverse=True):
        turns = deque(iter(items) for items in line.jobs[priority].values())
        while turns:
            items = turns.popleft()
            if (waiting := next(items, None)) is not None:
                yield waiting
                turns.append(items)


class QueueParts:
    """The parts of a bounded queue: its limit, divided by weight among the tenants that have anything in it.

    A tenant with nothing in it may always put one request into it, so a tenant that fills its part keeps no other out.
    So n tenants together have at most limit x (1 + 1/2 + ... + 1/n) and n requests in it, if their weights are equal.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.total = 0.0
        self._held: dict[str, tuple[Tenant, float]] = {}

    def held(self, tenant: Tenant) -> float:
        """What the tenant has in the queue."""
        return self._held[tenant.name][1] if tenant.name in self._held else 0.0

    def share(self, tenant: Tenant) -> float:
        """The tenant's fraction of the queue, and of what leaves it."""
        others = sum(other.weight for name, (other, _) in self._held.items() if name != tenant.name)
        return tenant.weight / (tenant.weight + others)

    def part(self, tenant: Tenant) -> float:
        return self.limit * self.share(tenant)

    def excess(self, tenant: Tenant, amount: float) -> float:
        """By how much `amount` more would pass the tenant's part; 0 or less if there is room for it."""
        held = self.held(tenant)
        return held + amount - self.part(tenant) if held else 0.0

    def add(self, tenant: Tenant, amount: float) -> None:
        """Count `amount` more in the queue, or less if it is negative."""
        self.total += amount
        held = self.held(tenant) + amount
        if held > 0:
            self._held[tenant.name] = (tenant, held)
        else:
            self._held.pop(tenant.name, None)
