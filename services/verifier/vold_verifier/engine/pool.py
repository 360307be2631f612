"""Warm worker processes, each on its own pipe, and the queue before them.

Items wait in lanes, one a caller, served in turn, so that a large batch does not starve a small one. A worker holds a
short run of items and answers them in order, so the first one unanswered is the one it is working on: when a worker
dies or is killed that item alone is to blame, and the others go back to the head of their lanes.

An item that kills its worker is tried once more in a fresh one. One that runs past the wall limit is not: its worker
is killed and it gets DEADLINE_EXCEEDED.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.errors import ServiceError

from vold_verifier import metrics
from vold_verifier.engine.forkclient import START_SECONDS, ForkServerClient
from vold_verifier.engine.worker import EXIT_OUT_OF_MEMORY, EXIT_TRIPWIRE, HEADER

MAX_RUN_COST = 32
"""Most that a worker holds at a time, in units of Verifier.cost; it always holds at least one item."""
MAX_RESULT_BYTES = 1 << 20
MAX_ATTEMPTS = 2
RESPAWN_DELAY_SECONDS = 0.5

Deliver = Callable[[int, verifier_pb2.VerifyResult], None]

log = logging.getLogger("vold.verifier.pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """cpu_seconds: soft limit for one item. wall_seconds: hard limit for one item. memory_bytes: of one worker's
    address space. recycle_after: items of one worker. max_queued: items waiting over all lanes. enable: verifiers that
    are off otherwise. sandbox: the workers are shut in and serve the verifiers that ask for it, and no others."""

    workers: int
    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    recycle_after: int = 2000
    max_queued: int = 65536
    plugins: tuple[str, ...] = ()
    enable: tuple[str, ...] = ()
    sandbox: bool = False


@dataclass(slots=True, eq=False)
class _Task:
    lane: "Lane"
    key: int
    payload: bytes
    cost: int
    attempts: int = 0


@dataclass(slots=True, eq=False)
class Lane:
    """One caller's items. `deliver(key, result)` is called on the event loop, in no particular order of keys."""

    pool: "Pool"
    deliver: Deliver
    waiting: deque[_Task] = field(default_factory=deque)
    closed: bool = False

    def put(self, key: int, payload: bytes, cost: int) -> None:
        """Queue a serialized VerifyItem. The caller has made sure of the room for it."""
        self.pool.enqueue(_Task(self, key, payload, cost))

    def close(self) -> None:
        """The caller has gone or has all it wants: what still waits is dropped, what is being checked is discarded."""
        if not self.closed:
            self.closed = True
            self.pool.forget(self)


class _Worker(asyncio.Protocol):
    """The server's end of one worker's pipe."""

    def __init__(self, pool: "Pool", number: int) -> None:
        self.pool = pool
        self.number = number
        self.transport: asyncio.WriteTransport | None = None
        self.held: deque[_Task] = deque()
        self.cost = 0
        self.served = 0
        self.head_since = 0.0
        self.buffer = bytearray()
        self.leaving = ""  # why the pool wants it gone; empty while it is wanted
        self.started = False
        self.disconnected = False
        self.exit_status: int | None = None
        self.reaped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.disconnected = True
        self.pool.bury(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        at, end = 0, len(self.buffer)
        while end - at >= HEADER.size:
            (size,) = HEADER.unpack_from(self.buffer, at)
            if size > MAX_RESULT_BYTES:
                self.pool.kill(self, "garbage")
                return
            if end - at - HEADER.size < size:
                break
            frame = bytes(self.buffer[at + HEADER.size : at + HEADER.size + size])
            at += HEADER.size + size
            if not self._answered(frame):
                self.pool.kill(self, "garbage")
                return
        del self.buffer[:at]
        self.pool.feed(self)

    def _answered(self, frame: bytes) -> bool:
        if not self.held or self.leaving == "garbage":
            return False
        try:
            result = verifier_pb2.VerifyResult.FromString(frame)
        except DecodeError:
            return False
        task = self.held.popleft()
        self.cost -= task.cost
        self.served += 1
        self.head_since = time.monotonic()
        if result.error.code == status_pb2.DEADLINE_EXCEEDED:
            self.leaving = "cpu_limit"  # it leaves by itself after such an item
        self.pool.finish(task, result)
        return True


class Pool:
    """Start it on the event loop that uses it; `start` and `stop` once each. The loop must run in the main thread."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.queued = 0
        self.room = asyncio.Event()
        self.room.set()
        self._workers: dict[int, _Worker] = {}
        self._turns: deque[Lane] = deque()
        self._retries: deque[_Task] = deque()
        self._number = 0
        self._fork_server: ForkServerClient | None = None
        self._all_started = asyncio.Event()
        self._stopping = False
        self._background: set[asyncio.Task[None]] = set()
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._finished = 0
        self._rate = 0.0
        self._swept_at = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        """What holds the workers in, as `sandbox.confine` names it; empty while the pool is not started."""
        return self._fork_server.layers if self._fork_server is not None else ()

    # -- the caller's side

    def lane(self, deliver: Deliver) -> Lane:
        return Lane(self, deliver)

    def reserve(self, items: int) -> None:
        """Raises RESOURCE_EXHAUSTED, with the time after which to come back, where `items` more do not fit."""
        if self.queued and self.queued + items > self.options.max_queued:
            seconds = min(30.0, max(0.1, self.queued / max(self._rate, 1.0)))
            raise ServiceError(
                status_pb2.RESOURCE_EXHAUSTED,
                f"{self.queued} items wait already and {items} more pass the limit of {self.options.max_queued}: "
                f"come back in {seconds:.1f} s or send fewer",
                field="items",
                retry_seconds=seconds,
            )

    def enqueue(self, task: _Task) -> None:
        if not task.lane.waiting:
            self._turns.append(task.lane)
        task.lane.waiting.append(task)
        self._queued(1)

    def forget(self, lane: Lane) -> None:
        self._queued(-len(lane.waiting))
        lane.waiting.clear()
        with contextlib.suppress(ValueError):
            self._turns.remove(lane)

    def refuse_waiting(self, message: str) -> None:
        """UNAVAILABLE for every item that waits: there are no workers and none will come."""
        while self._turns:
            lane = self._turns.popleft()
            tasks = list(lane.waiting)
            lane.waiting.clear()
            self._queued(-len(tasks))
            for task in tasks:
                self.finish(task, self._failed(status_pb2.UNAVAILABLE, message))

    def feed_all(self) -> None:
        """Give waiting items to workers that have room. Call it after a round of `Lane.put`."""
        for worker in tuple(self._workers.values()):
            if not self.queued and not self._retries:
                return
            self.feed(worker)

    # -- the workers' side

    def feed(self, worker: _Worker) -> None:
        if worker.leaving or not worker.started or worker.transport is None or worker.disconnected:
            return
        if worker.served >= self.options.recycle_after:
            if not worker.held:
                worker.leaving = "recycled"
                worker.transport.close()
            return
        # A long queue is handed out in long runs, the end of it item by item, so that no worker sits on a run
        # while another is idle.
        allowed = min(MAX_RUN_COST, self.queued // (2 * self.options.workers))
        if worker.held and worker.cost > allowed // 2:
            return
        frames: list[bytes] = []
        budget = self.options.recycle_after - worker.served - len(worker.held)
        while len(frames) < budget and (task := self._next(worker, allowed)) is not None:
            if not worker.held:
                worker.head_since = time.monotonic()
            worker.held.append(task)
            worker.cost += task.cost
            frames += (HEADER.pack(len(task.payload)), task.payload)
        if frames:
            worker.transport.write(b"".join(frames))

    def _next(self, worker: _Worker, allowed: int) -> _Task | None:
        if self._retries and not worker.held and not worker.served:
            return self._retries.popleft()
        if not self._turns:
            return None
        lane = self._turns[0]
        if worker.held and worker.cost + lane.waiting[0].cost > allowed:
            return None
        task = lane.waiting.popleft()
        self._turns.rotate(-1)
        if not lane.waiting:
            self._turns.remove(lane)
        self._queued(-1)
        return task

    def finish(self, task: _Task, result: verifier_pb2.VerifyResult) -> None:
        self._finished += 1
        if not task.lane.closed:
            task.lane.deliver(task.key, result)

    def kill(self, worker: _Worker, reason: str) -> None:
        """SIGKILL by way of the fork server, which alone knows that the process id is still the worker's."""
        if not worker.leaving or reason == "wall_limit":
            worker.leaving = reason
            if self._fork_server is not None:
                self._fork_server.kill(worker.number)

    def bury(self, worker: _Worker) -> None:
        """Once a worker's pipe has ended and its process is reaped: settle what it held, and replace it."""
        if not (worker.disconnected and worker.reaped) or self._workers.pop(worker.number, None) is None:
            return
        metrics.WORKERS.dec()
        if self._stopping:
            return
        reason = worker.leaving or self._cause(worker)
        metrics.RESTARTS.labels(reason).inc()
        held = list(worker.held)
        if held and reason == "wall_limit":
            message = f"no verdict within {self.options.wall_seconds:g} s: the item's worker was killed"
            self.finish(held.pop(0), self._failed(status_pb2.DEADLINE_EXCEEDED, message))
        elif held and reason == "cpu_kill":
            message = f"no verdict within {2 * self.options.cpu_seconds:g} s of CPU time: the item's worker was killed"
            self.finish(held.pop(0), self._failed(status_pb2.DEADLINE_EXCEEDED, message))
        elif held and reason not in ("cpu_limit", "recycled", "forkserver", "tripwire"):
            self._retry(held.pop(0), reason)
        for task in reversed(held):
            self._put_back(task)
        if reason not in ("cpu_limit", "cpu_kill", "recycled", "wall_limit"):
            log.warning("worker %d ended: %s", worker.number, reason)
        if worker.served or reason in ("wall_limit", "cpu_kill"):
            self._spawn()
        else:
            # A worker that dies before its first answer may do so for ever: do not spin.
            asyncio.get_running_loop().call_later(RESPAWN_DELAY_SECONDS, self._spawn)
        self.feed_all()

    def _retry(self, task: _Task, reason: str) -> None:
        task.attempts += 1
        if task.attempts < MAX_ATTEMPTS:
            if not task.lane.closed:
                self._retries.append(task)
            return
        self.finish(
            task,
            self._failed(status_pb2.INTERNAL, f"the item's worker ended in each of {MAX_ATTEMPTS} attempts: {reason}"),
        )

    def _put_back(self, task: _Task) -> None:
        if task.lane.closed:
            return
        if not task.lane.waiting:
            self._turns.appendleft(task.lane)
        task.lane.waiting.appendleft(task)
        self._queued(1)

    def _cause(self, worker: _Worker) -> str:
        status = worker.exit_status
        if status is None:
            return "forkserver"
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) == signal.SIGVTALRM:
                return "cpu_kill"
            return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
        code = os.WEXITSTATUS(status)
        return {EXIT_OUT_OF_MEMORY: "memory_limit", EXIT_TRIPWIRE: "tripwire"}.get(code, f"exit {code}")

    @staticmethod
    def _failed(code: "status_pb2.Code", message: str) -> verifier_pb2.VerifyResult:
        return verifier_pb2.VerifyResult(error=status_pb2.Status(code=code, message=message))

    def _queued(self, change: int) -> None:
        self.queued += change
        metrics.QUEUED.inc(change)
        if self.queued < self.options.max_queued:
            self.room.set()
        else:
            self.room.clear()

    # -- processes

    async def start(self) -> None:
        """Start the fork server and every worker. Raises OSError where the verifiers cannot be loaded."""
        await self._start_workers()
        self._sweep()

    async def stop(self) -> None:
        """End every process of the pool. Items still waiting are dropped."""
        self._stopping = True
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        for task in self._background:
            task.cancel()
        for worker in tuple(self._workers.values()):
            if worker.transport is not None:
                worker.transport.close()
        if self._fork_server is not None:
            await self._fork_server.stop()

    async def _start_workers(self) -> None:
        self._all_started.clear()
        self._fork_server = ForkServerClient(
            {
                "pool": "sandbox" if self.options.sandbox else "main",
                "plugins": self.options.plugins,
                "enable": self.options.enable,
                "cpu_seconds": self.options.cpu_seconds,
                "memory_bytes": self.options.memory_bytes,
            },
            started=self._worker_started,
            exited=self._worker_exited,
            lost=self._fork_server_lost,
        )
        await self._fork_server.start()
        for _ in range(self.options.workers):
            self._spawn()
        await asyncio.wait_for(self._all_started.wait(), START_SECONDS)

    def _spawn(self) -> None:
        if self._fork_server is None or self._stopping or len(self._workers) >= self.options.workers:
            return
        self._number += 1
        worker = _Worker(self, self._number)
        self._workers[worker.number] = worker
        metrics.WORKERS.inc()
        self._keep(self._connect(worker, self._fork_server.spawn(worker.number)))

    async def _connect(self, worker: _Worker, connection: socket.socket) -> None:
        await asyncio.get_running_loop().create_connection(lambda: worker, sock=connection)
        self.feed(worker)

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _worker_started(self, number: int) -> None:
        worker = self._workers[number]
        worker.started = True
        if all(one.started for one in self._workers.values()):
            self._all_started.set()
        self.feed(worker)

    def _worker_exited(self, number: int, status: int) -> None:
        worker = self._workers[number]
        worker.reaped, worker.exit_status = True, status
        self.bury(worker)

    def _fork_server_lost(self) -> None:
        if self._stopping:
            return
        log.error("the fork server ended: starting another")
        lost, self._fork_server = self._fork_server, None
        for worker in tuple(self._workers.values()):
            worker.leaving = worker.leaving or "forkserver"
            worker.reaped = True  # the kernel kills it with its parent; its pipe tells when
            self.bury(worker)
        self._keep(self._restart(lost))

    async def _restart(self, lost: ForkServerClient | None) -> None:
        while not self._stopping:
            if lost is not None:
                await lost.stop()
            try:
                await self._start_workers()
            except (OSError, TimeoutError) as error:
                lost, self._fork_server = self._fork_server, None
                log.error("%s; trying again in %.1f s", error, RESPAWN_DELAY_SECONDS)
                await asyncio.sleep(RESPAWN_DELAY_SECONDS)
            else:
                return

    def _sweep(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.held and now - worker.head_since > self.options.wall_seconds:
                self.kill(worker, "wall_limit")
        if self._swept_at:
            self._rate += 0.2 * (self._finished / (now - self._swept_at) - self._rate)
        self._finished, self._swept_at = 0, now
        interval = min(0.25, self.options.wall_seconds / 10)
        self._sweep_handle = asyncio.get_running_loop().call_later(interval, self._sweep)
