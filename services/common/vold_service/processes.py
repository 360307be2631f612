"""A few processes for work on one request that would hold the interpreter's lock for long: rendering and tokenizing
text, reading and writing large JSON. In a thread such work stops the event loop as if it ran there.

`Processes.fork` forks a server of forks before the service starts a thread. The server shares the memory of all that is
imported, and forks a worker within milliseconds when one is needed. It ends with the service, and the workers end with
their sockets. Values are pickled, as multiprocessing pickles them; only this service's own processes write them.
"""

import asyncio
import ctypes
import gc
import logging
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from vold_proto.v1 import status_pb2

from vold_service.errors import ServiceError, internal, unavailable
from vold_service.fairness import FairQueue
from vold_service.tenants import OPEN_TENANT, Tenant

log = logging.getLogger("vold.processes")
T = TypeVar("T")

WORKERS = 2
CPU_SECONDS = 30
"""CPU time of one piece of work, after which the kernel ends its worker."""

_PR_SET_DUMPABLE = 4
_LENGTH = struct.Struct("<Q")


@dataclass(slots=True, eq=False)
class _Work:
    tenant: Tenant
    data: bytes
    result: asyncio.Future[Any]


class Processes:
    """Runs functions in at most WORKERS processes, for tenants that share them by the characters they send and get."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._idle: list[socket.socket] = []
        self._waiting: FairQueue[_Work] = FairQueue()
        self._busy: set[asyncio.Task[None]] = set()

    @classmethod
    def fork(cls) -> "Processes":
        """Fork the server of forks. Call it before the process has started a thread or opened a connection."""
        processes = cls()
        processes._control, remote = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # OpenBLAS has idle threads from the moment NumPy is imported, and handles forks itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            processes._control.close()
            _run_and_exit(_fork_workers, remote)
        remote.close()
        return processes

    async def run(self, function: Callable[..., T], *arguments: Any, tenant: Tenant = OPEN_TENANT) -> T:
        """`function(*arguments)` in another process. function: of a module, not of an object.

        Raises the ServiceError that the function raises, or INTERNAL for any other failure.
        """
        data = pickle.dumps((function, arguments))
        work = _Work(tenant, data, asyncio.get_running_loop().create_future())
        self._waiting.put(tenant, work, len(data), job=id(work))
        self._start_waiting()
        try:
            result: T = await work.result
        finally:
            self._waiting.drop(id(work))  # if its caller has gone before it began
        return result

    async def stop(self) -> None:
        """End the processes. Work under way fails as UNAVAILABLE."""
        self._waiting.clear()
        for task in self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy)
        for worker in self._idle:
            worker.close()
        self._idle.clear()
        if self._control is not None:
            self._control.close()
            self._control = None

    def _start_waiting(self) -> None:
        """Give waiting work to free workers: of the tenant for which they have done the least."""
        while len(self._busy) < WORKERS and (waiting := self._waiting.first()) is not None:
            self._waiting.take(waiting, waiting.cost)
            work = waiting.item
            task = asyncio.create_task(self._serve(self._idle.pop() if self._idle else None, work))
            self._busy.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        if not self._busy and not self._waiting:
            self._waiting.share.idle()
        self._start_waiting()

    async def _serve(self, worker: socket.socket | None, work: _Work) -> None:
        try:
            worker = worker or self._fork_worker()
            outcome, size = await _exchange(worker, work.data)
            self._waiting.share.charge(work.tenant, size)
        except asyncio.CancelledError:
            outcome = unavailable("the server is shutting down")
        except (OSError, EOFError) as error:
            log.error("a helper process ended in the middle of its work: %s", error)
            outcome = ServiceError(
                status_pb2.INTERNAL, "the process that worked on this request ended: send a smaller request"
            )
        else:
            self._idle.append(worker)
            worker = None
        if worker is not None:
            worker.close()
        if work.result.done():
            return  # its caller has gone
        if isinstance(outcome, ServiceError):
            work.result.set_exception(outcome)
        else:
            work.result.set_result(outcome)

    def _fork_worker(self) -> socket.socket:
        if self._control is None:
            raise OSError("no server of forks was started")
        local, remote = socket.socketpair()
        local.setblocking(False)
        with remote:
            socket.send_fds(self._control, [b"f"], [remote.fileno()])
        return local


async def _exchange(worker: socket.socket, data: bytes) -> tuple[Any, int]:
    """What the worker's function returned or raised, and the bytes of it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(worker, _LENGTH.pack(len(data)))
    await loop.sock_sendall(worker, data)
    (length,) = _LENGTH.unpack(await _receive(worker, _LENGTH.size))
    return pickle.loads(await _receive(worker, length)), length  # noqa: S301  (of this service's own process)


async def _receive(worker: socket.socket, length: int) -> bytearray:
    loop = asyncio.get_running_loop()
    data = bytearray(length)
    with memoryview(data) as view:
        filled = 0
        while filled < length:
            received = await loop.sock_recv_into(worker, view[filled:])
            if not received:
                raise EOFError("its socket is closed")
            filled += received
    return data


def _run_and_exit(function: Callable[[socket.socket], None], channel: socket.socket) -> NoReturn:
    """Run a forked process to its end, without the exit handlers of the process that it was forked from."""
    status = 1
    try:
        function(channel)
        status = 0
    except BaseException:
        log.critical("a helper process failed", exc_info=True)
    finally:
        os._exit(status)


def _hide_memory() -> None:
    """Let no other process of this user read the memory and the environment, which are copies of the service's and may
    hold keys (Linux). Forks inherit it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _fork_workers(control: socket.socket) -> None:
    """Fork a worker for each socket that comes, until the service has gone."""
    _hide_memory()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the service handles them, and closes the socket
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    gc.freeze()  # so that the collector does not make the workers copy pages
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        (descriptor,) = descriptors
        if os.fork() == 0:
            control.close()
            _run_and_exit(_work, socket.socket(fileno=descriptor))
        os.close(descriptor)


def _work(channel: socket.socket) -> None:
    """Run the functions that come, until the service has closed the socket."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with channel.makefile("rwb") as stream:
        while header := stream.read(_LENGTH.size):
            data = stream.read(*_LENGTH.unpack(header))
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            outcome: Any
            try:
                function, arguments = pickle.loads(data)  # noqa: S301  (of the service that forked this process)
                outcome = function(*arguments)
            except ServiceError as error:
                outcome = error
            except Exception as error:
                log.exception("work in a helper process failed")
                outcome = internal(error)
            reply = pickle.dumps(outcome)
            stream.write(_LENGTH.pack(len(reply)))
            stream.write(reply)
            stream.flush()
