"""A pool of warm worker processes, each on a pipe of its own, and the queues of items before them.

The tenants share the workers by weight, in seconds of a worker or, if its processes used more, of CPU time
(vold_service.fairness). An item is charged what its tenant's items took last when it is sent, and the difference when
its result is there. The requests of a tenant take turns, so that a large batch does not starve a small one.

A worker has a few items in flight, of a fraction of a second by that estimate, and answers them in order, so the first
item without a result is the one that the worker is verifying. If an item took long all the same, and another tenant is
next, the worker ends and the items behind it wait again: nobody waits for a batch that was thought to be quick. When
the worker dies or is killed, that item alone is at fault, and the items behind it go back to the heads of their queues.

An item whose worker crashed is tried once more in a new worker. An item that runs past the wall-clock limit is not: its
worker is killed, and the item gets DEADLINE_EXCEEDED.

When the fork server ends or stops working, its workers go with it, and another fork server starts with workers of its
own. Items wait for the first one that follows; once a start has failed, they get UNAVAILABLE until a start succeeds.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.errors import ServiceError
from vold_service.fairness import FairQueue, QueueParts, Waiting
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_verifier import metrics
from vold_verifier.engine.forkclient import START_SECONDS, ForkServerClient
from vold_verifier.engine.worker import EXIT_OUT_OF_MEMORY, EXIT_TRIPWIRE, HEADER, RESULT_HEADER, error_result

MAX_IN_FLIGHT_COST = 32
"""Most cost in flight in a worker, in units of Verifier.cost; one item is always allowed."""
MAX_IN_FLIGHT_SECONDS = 0.1
"""Most seconds in flight in a worker, by estimate; one item is always allowed."""
FIRST_GUESS_SECONDS = 0.001
"""What a unit of cost takes until a tenant's first result."""
FORGETTING = 0.5
"""A tenant's estimate falls at most to this fraction of itself with each item, and rises at once."""
MAX_RESULT_BYTES = 1 << 20
MAX_ATTEMPTS = 2
RESPAWN_DELAY_SECONDS = 0.5
MAX_RESTART_DELAY_SECONDS = 10.0
BETWEEN_ITEMS = ("cpu_limit", "recycled", "reclaimed", "forkserver", "tripwire")
"""Reasons why a worker ends for which no item in flight is at fault."""
NO_WORKERS = "no worker can verify the item: the workers' processes do not start, and the server's log says why"

OnResult = Callable[[int, verifier_pb2.VerifyResult], None]

log = logging.getLogger("vold.verifier.pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """cpu_seconds: soft limit for one item. wall_seconds: hard limit for one item. memory_bytes: address space of one
    worker. recycle_after: items after which a worker is replaced. max_queued: items in all queues, of which each
    tenant has its part. enable: verifiers
    that are off by default. sandbox: the workers are confined, and serve the verifiers of pool "sandbox" only.
    stall_seconds: time for the fork server to start or to end a worker; then it is replaced."""

    workers: int
    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    recycle_after: int = 2000
    max_queued: int = 65536
    plugins: tuple[str, ...] = ()
    enable: tuple[str, ...] = ()
    sandbox: bool = False
    stall_seconds: float = 30.0


@dataclass(slots=True, eq=False)
class _QueuedItem:
    queue: "RequestQueue"
    key: int
    payload: bytes
    cost: int
    waiting: Waiting["_QueuedItem"] | None = None  # its place among the waiting items, also after it was sent
    charged: float = 0.0
    attempts: int = 0


@dataclass(slots=True, eq=False)
class RequestQueue:
    """The items of one request or stream. `on_result(key, result)` runs on the event loop, in any order of keys."""

    pool: "Pool"
    tenant: Tenant
    on_result: OnResult
    closed: bool = False

    def put(self, key: int, payload: bytes, cost: int) -> None:
        """Queue a serialized VerifyItem. Call `Pool.check_capacity` first: `put` has no limit."""
        self.pool.enqueue(_QueuedItem(self, key, payload, cost))

    def close(self) -> None:
        """Drop the waiting items and the results of the items in flight: the caller has left or has all results."""
        if not self.closed:
            self.closed = True
            self.pool.drop(self)


class _Worker(asyncio.Protocol):
    """The service's end of the pipe to one worker."""

    def __init__(self, pool: "Pool", number: int) -> None:
        self.pool = pool
        self.number = number
        self.transport: asyncio.WriteTransport | None = None
        self.in_flight: deque[_QueuedItem] = deque()
        self.cost = 0
        self.seconds = 0.0  # of the items in flight, by estimate
        self.overdue = False  # whether an item took so long that those behind it may not have been sent
        self.answered = 0
        self.item_started = 0.0
        self.buffer = bytearray()
        self.stop_reason = ""  # why the pool wants the worker to end; empty while the worker is wanted
        self.changing_since = time.monotonic()  # when the worker was told to start, or to end
        self.started = False
        self.disconnected = False
        self.exit_status: int | None = None
        self.reaped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.disconnected = True
        self.pool.replace_if_ended(self)

    def expect_end(self, reason: str) -> None:
        self.stop_reason, self.changing_since = reason, time.monotonic()

    @property
    def changing(self) -> bool:
        """Whether the worker's process is to start or to end, and has not."""
        return bool(self.stop_reason) or not self.started

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        at, end = 0, len(self.buffer)
        while end - at >= RESULT_HEADER.size:
            cpu_seconds, size = RESULT_HEADER.unpack_from(self.buffer, at)
            if size > MAX_RESULT_BYTES:
                self.pool.kill(self, "garbage")
                return
            at += RESULT_HEADER.size
            if end - at < size:
                at -= RESULT_HEADER.size
                break
            frame = bytes(self.buffer[at : at + size])
            at += size
            if not self._accept_result(frame, cpu_seconds):
                self.pool.kill(self, "garbage")
                return
        del self.buffer[:at]
        if self.overdue:
            self.overdue = False
            self.pool.reclaim(self)
        self.pool.dispatch_to(self)
        if not self.in_flight:
            self.pool.rest()

    def _accept_result(self, frame: bytes, cpu_seconds: float) -> bool:
        """Return False if `frame` is not the result of an item in flight."""
        if not self.in_flight or self.stop_reason == "garbage":
            return False
        try:
            result = verifier_pb2.VerifyResult.FromString(frame)
        except DecodeError:
            return False
        item = self.in_flight.popleft()
        self.cost -= item.cost
        self.seconds -= item.charged
        seconds = max(result.seconds, cpu_seconds)
        self.overdue |= seconds * len(self.in_flight) > MAX_IN_FLIGHT_SECONDS
        self.pool.settle_charge(item, seconds)
        self.answered += 1
        self.item_started = time.monotonic()
        if result.error.code == status_pb2.DEADLINE_EXCEEDED:
            self.expect_end("cpu_limit")  # the worker ends by itself after such an item
        self.pool.finish(item, result)
        return True


class Pool:
    """Call `start` and `stop` once each, on the event loop that uses the pool. The loop must run in the main thread."""

    def __init__(self, options: PoolOptions, on_change: Callable[[], None] = lambda: None) -> None:
        """on_change: called when `available` may have changed."""
        self.options = options
        self.available = False  # whether the fork server is up and has started every worker
        self._on_change = on_change
        self._workers: dict[int, _Worker] = {}
        self._waiting: FairQueue[_QueuedItem] = FairQueue()
        self._parts = QueueParts(options.max_queued)
        self._room_waiters: set[asyncio.Future[None]] = set()
        self._seconds: dict[str, float] = {}  # of a unit of cost, by tenant: see FORGETTING
        self._retries: deque[_QueuedItem] = deque()
        self._last_number = 0
        self._fork_server: ForkServerClient | None = None
        self._all_started: asyncio.Future[None] | None = None  # of the fork server that started last
        self._refusing = False  # whether items get UNAVAILABLE instead of waiting for workers
        self._stopping = False
        self._background: set[asyncio.Task[None]] = set()
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._finished = 0
        self._rate = 0.0
        self._swept_at = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that confine the workers, as `sandbox.confine` names them; empty until the pool has started."""
        return self._fork_server.layers if self._fork_server is not None else ()

    # -- the caller's side

    @property
    def queued(self) -> int:
        """Items that wait for a worker."""
        return len(self._waiting)

    def open_queue(self, on_result: OnResult, tenant: Tenant = OPEN_TENANT) -> RequestQueue:
        return RequestQueue(self, tenant, on_result)

    def check_capacity(self, items: int, tenant: Tenant = OPEN_TENANT) -> None:
        """Raises RESOURCE_EXHAUSTED, with the delay before a retry, if `items` more items do not fit in the tenant's
        part of the queue.
        """
        if self._parts.excess(tenant, items) > 0:
            waiting = self._parts.held(tenant)
            seconds = min(30.0, max(0.1, waiting / max(self._rate * self._parts.share(tenant), 1.0)))
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

    def enqueue(self, item: _QueuedItem) -> None:
        self._waiting.put(item.queue.tenant, item, 0.0, job=item.queue)  # its cost is estimated when it is sent
        self._change_queued(item.queue.tenant, 1)

    def drop(self, queue: RequestQueue) -> None:
        if dropped := self._waiting.drop(queue):
            self._change_queued(queue.tenant, -dropped)

    def fail_queued(self, message: str) -> None:
        """Answer every queued item with UNAVAILABLE: no worker will start."""
        while self._retries:
            self.finish(self._retries.popleft(), error_result(status_pb2.UNAVAILABLE, message))
        while (waiting := self._waiting.first()) is not None:
            self._take(waiting, 0.0)
            self.finish(waiting.item, error_result(status_pb2.UNAVAILABLE, message))

    def dispatch(self) -> None:
        """Send queued items to workers that have room. Call it after a round of `RequestQueue.put`."""
        if self._refusing:
            self.fail_queued(NO_WORKERS)
        for worker in tuple(self._workers.values()):
            if not self.queued and not self._retries:
                return
            self.dispatch_to(worker)

    # -- the workers' side

    def dispatch_to(self, worker: _Worker) -> None:
        """Send queued items to `worker` if it has room, or end it if it has answered its number of items."""
        if worker.stop_reason or not worker.started or worker.transport is None or worker.disconnected:
            return
        if worker.answered >= self.options.recycle_after:
            if not worker.in_flight:
                worker.expect_end("recycled")
                worker.transport.close()
            return
        # While the queue is long, a worker gets several items at a time; towards its end, item by item, so that no
        # item waits behind another while some worker is idle.
        max_cost = min(MAX_IN_FLIGHT_COST, self.queued // (2 * self.options.workers))
        if worker.in_flight and worker.cost > max_cost // 2:
            return
        frames: list[bytes] = []
        budget = self.options.recycle_after - worker.answered - len(worker.in_flight)
        while len(frames) < budget and (item := self._next_item(worker, max_cost)) is not None:
            if not worker.in_flight:
                worker.item_started = time.monotonic()
            worker.in_flight.append(item)
            worker.cost += item.cost
            worker.seconds += item.charged
            frames += (HEADER.pack(len(item.payload)), item.payload)
        if frames:
            worker.transport.write(b"".join(frames))

    def _next_item(self, worker: _Worker, max_cost: int) -> _QueuedItem | None:
        if self._retries and not worker.in_flight and not worker.answered:
            item = self._retries.popleft()
            item.charged = self._estimate(item)
            self._waiting.share.charge(item.queue.tenant, item.charged)
            return item
        waiting = self._waiting.first()
        if waiting is None:
            return None
        item, seconds = waiting.item, self._estimate(waiting.item)
        if worker.in_flight and (
            worker.cost + item.cost > max_cost or worker.seconds + seconds > MAX_IN_FLIGHT_SECONDS
        ):
            return None
        self._take(waiting, seconds)
        return item

    def _take(self, waiting: Waiting[_QueuedItem], seconds: float) -> None:
        item = waiting.item
        item.waiting, item.charged = waiting, seconds
        self._waiting.take(waiting, seconds)
        self._change_queued(waiting.tenant, -1)

    def _estimate(self, item: _QueuedItem) -> float:
        return item.cost * self._seconds.get(item.queue.tenant.name, FIRST_GUESS_SECONDS)

    def settle_charge(self, item: _QueuedItem, seconds: float) -> None:
        """Charge what an item took, beyond what it was charged when it was sent."""
        seconds = max(seconds, 0.0) if math.isfinite(seconds) else 0.0
        tenant = item.queue.tenant
        self._waiting.share.charge(tenant, seconds - item.charged)
        item.charged = 0.0
        before = self._seconds.get(tenant.name, FIRST_GUESS_SECONDS)
        self._seconds[tenant.name] = max(seconds / max(item.cost, 1), FORGETTING * before)

    def rest(self) -> None:
        """If there is nothing to do, no tenant owes anything."""
        if not self._waiting and not any(worker.in_flight for worker in self._workers.values()):
            self._waiting.share.idle()

    def reclaim(self, worker: _Worker) -> None:
        """End a worker whose items take longer than they were thought to, if another tenant is next: its items wait
        again.
        """
        if not worker.in_flight or worker.stop_reason:
            return
        waiting = self._waiting.first()
        if waiting is None or waiting.tenant.name == worker.in_flight[0].queue.tenant.name:
            return
        if sum(self._estimate(item) for item in worker.in_flight) > MAX_IN_FLIGHT_SECONDS + self._estimate(
            worker.in_flight[0]
        ):
            self.kill(worker, "reclaimed")

    def finish(self, item: _QueuedItem, result: verifier_pb2.VerifyResult) -> None:
        self._finished += 1
        if not item.queue.closed:
            item.queue.on_result(item.key, result)

    def kill(self, worker: _Worker, reason: str) -> None:
        """Send SIGKILL through the fork server: it alone knows that the process id is still the worker's."""
        if not worker.stop_reason or worker.stop_reason != reason == "wall_limit":
            worker.expect_end(reason)
            if self._fork_server is not None:
                self._fork_server.kill(worker.number)

    def replace_if_ended(self, worker: _Worker) -> None:
        """If the worker's pipe has closed and its process is reaped, settle its items in flight and replace it."""
        if not (worker.disconnected and worker.reaped) or self._workers.pop(worker.number, None) is None:
            return
        if worker.started:
            metrics.WORKERS.dec()
        if self._stopping:
            return
        reason = worker.stop_reason or _cause_of_exit(worker.exit_status)
        self._charge_lost(worker, reason)
        metrics.RESTARTS.labels(reason).inc()
        self._settle(list(worker.in_flight), reason)
        if reason not in ("cpu_limit", "cpu_kill", "recycled", "reclaimed", "wall_limit"):
            log.warning("worker %d ended: %s", worker.number, reason)
        if not _ends_at_once(worker, reason):
            self._spawn()
        else:
            # A worker that ends before its first result may do so every time: the delay prevents a busy loop.
            asyncio.get_running_loop().call_later(RESPAWN_DELAY_SECONDS, self._spawn)
        self.dispatch()

    def _charge_lost(self, worker: _Worker, reason: str) -> None:
        """Charge the item that the ended worker was verifying for its time, and give back the rest."""
        for number, item in enumerate(worker.in_flight):
            if number or reason in BETWEEN_ITEMS:
                self._waiting.share.charge(item.queue.tenant, -item.charged)
                item.charged = 0.0
            else:
                seconds = time.monotonic() - worker.item_started
                self.settle_charge(item, seconds + RESPAWN_DELAY_SECONDS * _ends_at_once(worker, reason))

    def _settle(self, items: list[_QueuedItem], reason: str) -> None:
        """Answer or retry the item that the ended worker was verifying, and requeue the items behind it."""
        if items and reason == "wall_limit":
            message = f"no verdict within {self.options.wall_seconds:g} s: the item's worker was killed"
            self.finish(items.pop(0), error_result(status_pb2.DEADLINE_EXCEEDED, message))
        elif items and reason == "cpu_kill":
            message = f"no verdict within {2 * self.options.cpu_seconds:g} s of CPU time: the item's worker was killed"
            self.finish(items.pop(0), error_result(status_pb2.DEADLINE_EXCEEDED, message))
        elif items and reason not in BETWEEN_ITEMS:
            self._retry(items.pop(0), reason)
        for item in reversed(items):
            self._requeue(item)

    def _retry(self, item: _QueuedItem, reason: str) -> None:
        item.attempts += 1
        if item.attempts < MAX_ATTEMPTS:
            if not item.queue.closed:
                self._retries.append(item)
            return
        message = f"the item's worker ended in each of {MAX_ATTEMPTS} attempts: {reason}"
        self.finish(item, error_result(status_pb2.INTERNAL, message))

    def _requeue(self, item: _QueuedItem) -> None:
        if item.queue.closed:
            return
        assert item.waiting is not None, "the item was sent"
        self._waiting.put_back(item.waiting)
        self._change_queued(item.queue.tenant, 1)

    def _change_queued(self, tenant: Tenant, change: int) -> None:
        self._parts.add(tenant, change)
        metrics.QUEUED.inc(change)
        if change < 0:
            for waiter in self._room_waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # -- processes

    async def start(self) -> None:
        """Start the fork server and every worker. Raises OSError if the verifiers cannot be loaded."""
        await self._start_workers()
        self._sweep()

    async def stop(self) -> None:
        """End every process of the pool, and drop the queued items."""
        self._stopping = True
        self._set_available(False)
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for worker in tuple(self._workers.values()):
            if worker.transport is not None:
                worker.transport.close()
        if self._fork_server is not None:
            await self._fork_server.stop()

    async def _start_workers(self) -> None:
        """Start a fork server and every worker. Raises OSError, and then leaves no process and no worker behind."""
        fork_server = ForkServerClient(
            {
                "pool": "sandbox" if self.options.sandbox else "main",
                "plugins": self.options.plugins,
                "enable": self.options.enable,
                "cpu_seconds": self.options.cpu_seconds,
                "memory_bytes": self.options.memory_bytes,
            },
            on_started=self._on_worker_started,
            on_exited=self._on_worker_exited,
            on_lost=self._on_fork_server_lost,
        )
        await fork_server.start()
        # Not earlier: a fork server that ends while it loads would leave behind the workers that it was told to start.
        self._fork_server = fork_server
        self._all_started = asyncio.get_running_loop().create_future()
        try:
            for _ in range(self.options.workers):
                self._spawn()
            await asyncio.wait_for(self._all_started, START_SECONDS)
        except BaseException:
            self._fork_server = None
            self._abandon_workers()
            await fork_server.stop()
            raise
        self._refusing = False
        self._set_available(True)

    def _set_available(self, available: bool) -> None:
        if available != self.available:
            self.available = available
            self._on_change()

    def _spawn(self) -> None:
        if self._fork_server is None or self._stopping or len(self._workers) >= self.options.workers:
            return
        self._last_number += 1
        worker = _Worker(self, self._last_number)
        self._workers[worker.number] = worker
        self._run_in_background(self._connect(worker, self._fork_server.spawn(worker.number)))

    async def _connect(self, worker: _Worker, connection: socket.socket) -> None:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: worker, sock=connection)
        if worker.number in self._workers:
            self.dispatch_to(worker)
        else:
            transport.abort()  # its fork server has ended

    def _run_in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _on_worker_started(self, number: int) -> None:
        worker = self._workers[number]
        worker.started = True
        metrics.WORKERS.inc()
        all_started = all(each.started for each in self._workers.values())
        if all_started and self._all_started is not None and not self._all_started.done():
            self._all_started.set_result(None)
        self.dispatch_to(worker)

    def _on_worker_exited(self, number: int, status: int) -> None:
        worker = self._workers[number]
        worker.reaped, worker.exit_status = True, status
        self.replace_if_ended(worker)

    def _on_fork_server_lost(self) -> None:
        assert self._all_started is not None
        if self._stopping:
            return
        lost, self._fork_server = self._fork_server, None
        self._set_available(False)
        self._abandon_workers()
        if self._all_started.done():
            log.error("the fork server ended: starting another")
            self._run_in_background(self._restart(lost))
        else:
            self._all_started.set_exception(OSError("the fork server ended while its workers started"))

    def _abandon_workers(self) -> None:
        """Give up every worker: the kernel kills it with its fork server, and its items go back to their queues."""
        for worker in tuple(self._workers.values()):
            worker.stop_reason = worker.stop_reason or "forkserver"
            worker.reaped = worker.disconnected = True
            if worker.transport is not None:
                worker.transport.abort()
            self.replace_if_ended(worker)

    async def _restart(self, lost: ForkServerClient | None) -> None:
        """Start fork servers until one is up with its workers."""
        if lost is not None:
            await lost.stop()
        delay = RESPAWN_DELAY_SECONDS
        while True:
            try:
                await self._start_workers()
                return
            except Exception as error:  # whatever it is: without this loop no worker would ever return
                log.error("%s; trying again in %.1f s", error, delay)
                self._refusing = True
                self.dispatch()
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RESTART_DELAY_SECONDS)

    def _sweep(self) -> None:
        """Kill the workers that are past the wall-clock limit, and the fork server if it does not do its work; measure
        the rate of results. Repeats itself.
        """
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.in_flight and now - worker.item_started > self.options.wall_seconds:
                self.kill(worker, "wall_limit")
            if self._fork_server is not None and worker.changing:
                stalled = now - worker.changing_since
                if stalled > self.options.stall_seconds:
                    log.error(
                        "worker %d did not start or end in %.0f s: ending its fork server", worker.number, stalled
                    )
                    self._fork_server.kill_all()
                    break
        if self._swept_at:
            self._rate += 0.2 * (self._finished / (now - self._swept_at) - self._rate)
        self._finished, self._swept_at = 0, now
        interval = min(0.25, self.options.wall_seconds / 10)
        self._sweep_handle = asyncio.get_running_loop().call_later(interval, self._sweep)


def _ends_at_once(worker: _Worker, reason: str) -> bool:
    """Whether the worker may end before its first result every time: another starts after a delay."""
    return not worker.answered and reason not in ("wall_limit", "cpu_kill", "reclaimed")


def _cause_of_exit(status: int | None) -> str:
    """Return the reason that `vold_verifier_worker_restarts` counts. status: None if the fork server ended first."""
    if status is None:
        return "forkserver"
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGVTALRM:
            return "cpu_kill"
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    return {EXIT_OUT_OF_MEMORY: "memory_limit", EXIT_TRIPWIRE: "tripwire"}.get(code, f"exit {code}")
