"""The items that wait for a worker of one pool, and whose turn it is.

The tenants share the workers by weight, in seconds of a worker or, if its processes used more, of CPU time
(vold_service.fairness). An item is charged what its tenant's items took last when it is sent, and the difference when
its result is there. The requests of a tenant take turns, so that a large batch does not starve a small one.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.errors import ServiceError
from vold_service.fairness import FairQueue, QueueParts, Waiting
from vold_service.tenants import Tenant

from vold_verifier import metrics

FIRST_GUESS_SECONDS = 0.001
"""What a unit of cost takes until a tenant's first result."""
FORGETTING = 0.5
"""A tenant's estimate falls at most to this fraction of itself with each item, and rises at once."""

OnResult = Callable[[int, verifier_pb2.VerifyResult], None]


@dataclass(slots=True, eq=False)
class QueuedItem:
    queue: "RequestQueue"
    key: int
    payload: bytes
    cost: int
    waiting: Waiting["QueuedItem"] | None = None  # its place among the waiting items, also after it was sent
    charged: float = 0.0
    attempts: int = 0


@dataclass(slots=True, eq=False)
class RequestQueue:
    """The items of one request or stream. `on_result(key, result)` runs on the event loop, in any order of keys."""

    items: "WaitingItems"
    tenant: Tenant
    on_result: OnResult
    closed: bool = False

    def put(self, key: int, payload: bytes, cost: int) -> None:
        """Queue a serialized VerifyItem. Call `Pool.check_capacity` first: `put` has no limit."""
        self.items.put(QueuedItem(self, key, payload, cost))

    def close(self) -> None:
        """Drop the waiting items and the results of the items in flight: the caller has left or has all results."""
        if not self.closed:
            self.closed = True
            self.items.drop(self)


class WaitingItems:
    def __init__(self, max_queued: int) -> None:
        """max_queued: of all tenants together; each has its part."""
        self._fair: FairQueue[QueuedItem] = FairQueue()
        self._parts = QueueParts(max_queued)
        self._room_waiters: set[asyncio.Future[None]] = set()
        self._seconds: dict[str, float] = {}  # of a unit of cost, by tenant: see FORGETTING

    def __len__(self) -> int:
        return len(self._fair)

    def check_capacity(self, items: int, tenant: Tenant, rate: float) -> None:
        """Raises RESOURCE_EXHAUSTED, with the delay before a retry, if `items` more items do not fit in the tenant's
        part of the queue. rate: results a second, of all tenants.
        """
        if self._parts.excess(tenant, items) > 0:
            waiting = self._parts.held(tenant)
            seconds = min(30.0, max(0.1, waiting / max(rate * self._parts.share(tenant), 1.0)))
            raise ServiceError(
                status_pb2.RESOURCE_EXHAUSTED,
                f"{waiting:.0f} items of the tenant {tenant.name!r} wait already and {items} more pass its part of "
                f"{self._parts.part(tenant):.0f}: retry in {seconds:.1f} s or send fewer",
                field="items",
                retry_seconds=seconds,
            )

    def has_room(self, tenant: Tenant) -> bool:
        return self._parts.excess(tenant, 1) <= 0

    async def wait_for_room(self, tenant: Tenant) -> None:
        """Wait until the tenant's part of the queue has room for an item."""
        while not self.has_room(tenant):
            waiter = asyncio.get_running_loop().create_future()
            self._room_waiters.add(waiter)
            try:
                await waiter
            finally:
                self._room_waiters.discard(waiter)

    def put(self, item: QueuedItem) -> None:
        self._fair.put(item.queue.tenant, item, 0.0, job=item.queue)  # its cost is estimated when it is sent
        self._change_queued(item.queue.tenant, 1)

    def put_back(self, item: QueuedItem) -> None:
        """Let an item that was sent wait again, at the head of its queue."""
        assert item.waiting is not None, "the item was sent"
        self._fair.put_back(item.waiting)
        self._change_queued(item.queue.tenant, 1)

    def drop(self, queue: RequestQueue) -> None:
        if dropped := self._fair.drop(queue):
            self._change_queued(queue.tenant, -dropped)

    def first(self) -> QueuedItem | None:
        """The item whose turn it is; `take` removes it."""
        waiting = self._fair.first()
        if waiting is None:
            return None
        waiting.item.waiting = waiting
        return waiting.item

    def take(self, item: QueuedItem, seconds: float) -> None:
        """Remove the `first` item, and charge its tenant `seconds`."""
        assert item.waiting is not None, "the item is the first"
        item.charged = seconds
        self._fair.take(item.waiting, seconds)
        self._change_queued(item.queue.tenant, -1)

    def estimate(self, item: QueuedItem) -> float:
        """Seconds that an item will take."""
        return item.cost * self._seconds.get(item.queue.tenant.name, FIRST_GUESS_SECONDS)

    def charge(self, item: QueuedItem) -> None:
        """Charge the estimate of an item that is sent a second time."""
        item.charged = self.estimate(item)
        self._fair.share.charge(item.queue.tenant, item.charged)

    def refund(self, item: QueuedItem) -> None:
        """Give back what an item was charged that no worker has begun."""
        self._fair.share.charge(item.queue.tenant, -item.charged)
        item.charged = 0.0

    def settle(self, item: QueuedItem, seconds: float) -> None:
        """Charge what an item took, beyond what it was charged when it was sent."""
        seconds = max(seconds, 0.0) if math.isfinite(seconds) else 0.0
        tenant = item.queue.tenant
        self._fair.share.charge(tenant, seconds - item.charged)
        item.charged = 0.0
        before = self._seconds.get(tenant.name, FIRST_GUESS_SECONDS)
        self._seconds[tenant.name] = max(seconds / max(item.cost, 1), FORGETTING * before)

    def rest(self) -> None:
        """Nothing waits and nothing runs: no tenant owes anything."""
        self._fair.share.idle()

    def _change_queued(self, tenant: Tenant, change: int) -> None:
        self._parts.add(tenant, change)
        metrics.QUEUED.inc(change)
        if change < 0:
            for waiter in self._room_waiters:
                if not waiter.done():
                    waiter.set_result(None)
