"""The service's end of the pipe to one worker: the items in flight, and the frames of their results.

A worker answers its items in order, so the first item without a result is the one that the worker is verifying.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

from google.protobuf.message import DecodeError
from vold_proto.v1 import status_pb2, verifier_pb2

from vold_verifier.engine.waiting import QueuedItem
from vold_verifier.engine.worker import RESULT_HEADER

MAX_IN_FLIGHT_SECONDS = 0.1
"""Most seconds in flight in a worker, by estimate; one item is always allowed."""
MAX_RESULT_BYTES = 1 << 20


class Owner(Protocol):
    """What a connection tells its pool."""

    def kill(self, worker: "WorkerConnection", reason: str) -> None: ...

    def reclaim(self, worker: "WorkerConnection") -> None: ...

    def dispatch_to(self, worker: "WorkerConnection") -> None: ...

    def rest(self) -> None: ...

    def finish_verified(self, item: QueuedItem, result: verifier_pb2.VerifyResult, seconds: float) -> None: ...

    def replace_if_ended(self, worker: "WorkerConnection") -> None: ...


class WorkerConnection(asyncio.Protocol):
    def __init__(self, pool: Owner, number: int) -> None:
        self.pool = pool
        self.number = number
        self.transport: asyncio.WriteTransport | None = None
        self.in_flight: deque[QueuedItem] = deque()
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
        self.answered += 1
        self.item_started = time.monotonic()
        if result.error.code == status_pb2.DEADLINE_EXCEEDED:
            self.expect_end("cpu_limit")  # the worker ends by itself after such an item
        self.pool.finish_verified(item, result, seconds)
        return True
