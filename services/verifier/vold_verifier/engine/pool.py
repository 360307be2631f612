"""A pool of warm worker processes, each on a pipe of its own (`connection`), behind the items that wait (`waiting`).

A worker has a few items in flight, of a fraction of a second by their estimate. If an item took long all the same, and
another tenant is next, the worker ends and the items behind it wait again: nobody waits for a batch that was thought to
be quick. When the worker dies or is killed, that item alone is at fault, and the items behind it go back to the heads
of their queues.

An item whose worker crashed is tried once more in a new worker. An item that runs past the wall-clock limit is not: its
worker is killed, and the item gets DEADLINE_EXCEEDED.

When the fork server ends or stops working, its workers go with it, and another fork server starts with workers of its
own. Items wait for the first one that follows; once a start has failed, they get UNAVAILABLE until a start succeeds.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_verifier import metrics
from vold_verifier.engine.connection import MAX_IN_FLIGHT_SECONDS, WorkerConnection
from vold_verifier.engine.exits import BETWEEN_ITEMS, cause_of_exit, ends_at_once
from vold_verifier.engine.forkclient import START_SECONDS, ForkServerClient, ForkServerProcess
from vold_verifier.engine.options import PoolOptions
from vold_verifier.engine.waiting import OnResult, QueuedItem, RequestQueue, WaitingItems
from vold_verifier.engine.worker import HEADER, error_result

MAX_IN_FLIGHT_COST = 32
"""Most cost in flight in a worker, in units of Verifier.cost; one item is always allowed."""
MAX_ATTEMPTS = 2
RESPAWN_DELAY_SECONDS = 0.5
MAX_RESTART_DELAY_SECONDS = 10.0
NO_WORKERS = "no worker can verify the item: the workers' processes do not start, and the server's log says why"

log = logging.getLogger("vold.verifier.pool")


class Pool:
    """Call `start` and `stop` once each, on the event loop that uses the pool. The loop must run in the main thread."""

    def __init__(
        self,
        options: PoolOptions,
        on_change: Callable[[], None] = lambda: None,
        launched: ForkServerProcess | None = None,
    ) -> None:
        """on_change: called when `available` may have changed. launched: the first fork server, with these options."""
        self.options = options
        self._launched = launched
        self.available = False  # whether the fork server is up and has started every worker
        self._on_change = on_change
        self._workers: dict[int, WorkerConnection] = {}
        self._waiting = WaitingItems(options.max_queued)
        self._retries: deque[QueuedItem] = deque()
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
        return RequestQueue(self._waiting, tenant, on_result)

    def check_capacity(self, items: int, tenant: Tenant = OPEN_TENANT) -> None:
        """Raises RESOURCE_EXHAUSTED, with the delay before a retry, if `items` more items do not fit in the tenant's
        part of the queue.
        """
        self._waiting.check_capacity(items, tenant, self._rate)

    async def wait_for_room(self, tenant: Tenant) -> None:
        """Wait until the tenant's part of the queue has room for an item."""
        await self._waiting.wait_for_room(tenant)

    def fail_queued(self, message: str) -> None:
        """Answer every queued item with UNAVAILABLE: no worker will start."""
        while self._retries:
            self.finish(self._retries.popleft(), error_result(status_pb2.UNAVAILABLE, message))
        while (item := self._waiting.first()) is not None:
            self._waiting.take(item, 0.0)
            self.finish(item, error_result(status_pb2.UNAVAILABLE, message))

    def dispatch(self) -> None:
        """Send queued items to workers that have room. Call it after a round of `RequestQueue.put`."""
        if self._refusing:
            self.fail_queued(NO_WORKERS)
        for worker in tuple(self._workers.values()):
            if not self.queued and not self._retries:
                return
            self.dispatch_to(worker)

    # -- the workers' side

    def dispatch_to(self, worker: WorkerConnection) -> None:
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

    def _next_item(self, worker: WorkerConnection, max_cost: int) -> QueuedItem | None:
        if self._retries and not worker.in_flight and not worker.answered:
            item = self._retries.popleft()
            self._waiting.charge(item)
            return item
        first = self._waiting.first()
        if first is None:
            return None
        seconds = self._waiting.estimate(first)
        if worker.in_flight and (
            worker.cost + first.cost > max_cost or worker.seconds + seconds > MAX_IN_FLIGHT_SECONDS
        ):
            return None
        self._waiting.take(first, seconds)
        return first

    def rest(self) -> None:
        """If there is nothing to do, no tenant owes anything."""
        if not self._waiting and not any(worker.in_flight for worker in self._workers.values()):
            self._waiting.rest()

    def reclaim(self, worker: WorkerConnection) -> None:
        """End a worker whose items take longer than they were thought to, if another tenant is next: its items wait
        again.
        """
        if not worker.in_flight or worker.stop_reason:
            return
        first = self._waiting.first()
        if first is None or first.queue.tenant.name == worker.in_flight[0].queue.tenant.name:
            return
        _, *behind = map(self._waiting.estimate, worker.in_flight)
        if sum(behind) > MAX_IN_FLIGHT_SECONDS:
            self.kill(worker, "reclaimed")

    def finish_verified(self, item: QueuedItem, result: verifier_pb2.VerifyResult, seconds: float) -> None:
        """Charge an item that took `seconds` in its worker, and hand over its result."""
        self._waiting.settle(item, seconds)
        self.finish(item, result)

    def finish(self, item: QueuedItem, result: verifier_pb2.VerifyResult) -> None:
        self._finished += 1
        if not item.queue.closed:
            item.queue.on_result(item.key, result)

    def kill(self, worker: WorkerConnection, reason: str) -> None:
        """Send SIGKILL through the fork server: it alone knows that the process id is still the worker's."""
        if not worker.stop_reason or worker.stop_reason != reason == "wall_limit":
            worker.expect_end(reason)
            if self._fork_server is not None:
                self._fork_server.kill(worker.number)

    def replace_if_ended(self, worker: WorkerConnection) -> None:
        """If the worker's pipe has closed and its process is reaped, settle its items in flight and replace it."""
        if not (worker.disconnected and worker.reaped) or self._workers.pop(worker.number, None) is None:
            return
        if worker.started:
            metrics.WORKERS.dec()
        if self._stopping:
            return
        reason = worker.stop_reason or cause_of_exit(worker.exit_status)
        self._charge_lost(worker, reason)
        metrics.RESTARTS.labels(reason).inc()
        self._settle(list(worker.in_flight), reason)
        if reason not in ("cpu_limit", "cpu_kill", "recycled", "reclaimed", "wall_limit"):
            log.warning("worker %d ended: %s", worker.number, reason)
        if not ends_at_once(worker, reason):
            self._spawn()
        else:
            # A worker that ends before its first result may do so every time: the delay prevents a busy loop.
            asyncio.get_running_loop().call_later(RESPAWN_DELAY_SECONDS, self._spawn)
        self.dispatch()

    def _charge_lost(self, worker: WorkerConnection, reason: str) -> None:
        """Charge the item that the ended worker was verifying for its time, and give back the rest."""
        for number, item in enumerate(worker.in_flight):
            if number or reason in BETWEEN_ITEMS:
                self._waiting.refund(item)
            else:
                seconds = time.monotonic() - worker.item_started
                self._waiting.settle(item, seconds + RESPAWN_DELAY_SECONDS * ends_at_once(worker, reason))

    def _settle(self, items: list[QueuedItem], reason: str) -> None:
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
            if not item.queue.closed:
                self._waiting.put_back(item)

    def _retry(self, item: QueuedItem, reason: str) -> None:
        item.attempts += 1
        if item.attempts < MAX_ATTEMPTS:
            if not item.queue.closed:
                self._retries.append(item)
            return
        message = f"the item's worker ended in each of {MAX_ATTEMPTS} attempts: {reason}"
        self.finish(item, error_result(status_pb2.INTERNAL, message))

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
        launched, self._launched = self._launched or ForkServerProcess.launch(self.options.of_fork_server()), None
        fork_server = ForkServerClient(
            launched,
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
        worker = WorkerConnection(self, self._last_number)
        self._workers[worker.number] = worker
        self._run_in_background(self._connect(worker, self._fork_server.spawn(worker.number)))

    async def _connect(self, worker: WorkerConnection, connection: socket.socket) -> None:
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
