"""Which items go where: to the workers, to the sandboxed workers, or, where judging is only asking somebody else, to a
task of the service itself. A composite goes to the places of its parts.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.errors import ServiceError

from vold_verifier import registry
from vold_verifier.engine.composite import Collector, part_items
from vold_verifier.engine.pool import Deliver, Lane, Pool, PoolOptions
from vold_verifier.engine.worker import failed, read_parameters, verdict_result
from vold_verifier.sandbox.confine import hide_memory
from vold_verifier.settings import VerifierSettings
from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.composite import CompositeParameters, CompositeVerifier

log = logging.getLogger("vold.verifier.dispatch")


@runtime_checkable
class ServiceVerifier(Protocol):
    """A verifier with pool "service": it waits for others, and runs as a task of the service's event loop."""

    async def judge(self, item: Item, parameters: Any, /) -> Verdict:
        """Raises ServiceError where there is no verdict."""
        ...

    async def close(self) -> None: ...


class Dispatcher:
    """The pools and what stands beside them. `start` and `stop` once each, on the event loop that serves."""

    def __init__(self, settings: VerifierSettings, verifiers: dict[str, Verifier[Any]]) -> None:
        self.settings = settings
        self.verifiers = verifiers
        options = PoolOptions(
            workers=settings.workers,
            cpu_seconds=settings.time_limit,
            wall_seconds=settings.wall_limit,
            memory_bytes=settings.worker_memory_bytes,
            recycle_after=settings.recycle_after,
            max_queued=settings.max_queued_items,
            plugins=settings.plugins,
            enable=settings.enable,
        )
        self.main = Pool(options)
        self.sandbox = Pool(
            replace(
                options,
                workers=settings.sandbox_workers or settings.workers,
                wall_seconds=settings.wall_limit + (settings.code_wall_limit if "code" in settings.enable else 0.0),
                memory_bytes=settings.sandbox_memory_bytes,
                sandbox=True,
            )
        )
        self._sandbox_start: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        return self.main.queued + self.sandbox.queued

    @property
    def workers_wanted(self) -> int:
        sandboxed = self.sandbox.options.workers if self._sandbox_start is not None else 0
        return self.main.options.workers + sandboxed

    async def room(self) -> None:
        """Wait until no pool's queue is full."""
        await self.main.room.wait()
        await self.sandbox.room.wait()

    async def start(self) -> None:
        """The sandbox too, where something in it was asked for by name; else its first item starts it.

        Raises OSError where the verifiers cannot be loaded, or `code` cannot be held in.
        """
        sandboxed = registry.of_pool(self.verifiers, "sandbox")
        starts: list[Awaitable[None]] = [self.main.start()]
        if any(name != "reasoning-gym" for name in sandboxed):
            self._sandbox_start = asyncio.create_task(self._start_sandbox())
            starts.append(asyncio.shield(self._sandbox_start))
        await asyncio.gather(*starts)

    async def stop(self) -> None:
        if self._sandbox_start is not None:
            self._sandbox_start.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, TimeoutError):
                await self._sandbox_start
        for verifier in self.verifiers.values():
            if isinstance(verifier, ServiceVerifier):
                await verifier.close()
        await asyncio.gather(self.main.stop(), self.sandbox.stop())

    def need_sandbox(self) -> None:
        """Start it if it is not there; what waits for it is refused if it cannot be."""
        if self._sandbox_start is None:
            self._sandbox_start = asyncio.create_task(self._start_sandbox())
            self._sandbox_start.add_done_callback(self._sandbox_started)

    def _sandbox_started(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the sandbox cannot start: %s", error)
            self._sandbox_start = None
            self.sandbox.refuse_waiting(
                "the sandbox that this verifier runs in cannot start: the server's log says why"
            )

    async def _start_sandbox(self) -> None:
        hide_memory()  # keys are in it, and where there is no other user the sandbox has the same
        await self.sandbox.start()
        layers = self.sandbox.layers
        log.info("the sandbox is held in by: %s", ", ".join(layers) or "resource limits alone")
        if "code" in self.verifiers and "seccomp" not in layers:
            await self.sandbox.stop()
            raise OSError(
                "`code` is enabled and cannot be held in here: it needs seccomp (libseccomp.so.2, on Linux); "
                f"what there is: {', '.join(layers) or 'nothing'}. Install libseccomp2, or leave out --enable code"
            )

    def desk(self, deliver: Deliver) -> "Desk":
        return Desk(self, deliver)


class Desk:
    """One caller's items, wherever they are judged: a lane in each pool, and the tasks of the service.

    `deliver(key, result)` is called on the event loop, in no particular order of keys, never from within `put`.
    """

    def __init__(self, dispatcher: Dispatcher, deliver: Deliver) -> None:
        self.dispatcher = dispatcher
        self.deliver = deliver
        self._lanes: dict[str, Lane] = {}
        self._arrivals: dict[int, Callable[[verifier_pb2.VerifyResult], None]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def reserve(self, work: Iterable[tuple[verifier_pb2.VerifyItem, Verifier[Any]]]) -> None:
        """Raises RESOURCE_EXHAUSTED, with the time after which to come back, where the items do not fit."""
        needed: Counter[str] = Counter()
        for item, verifier in work:
            if isinstance(verifier, CompositeVerifier):
                names = [part.verifier for part in _composite(verifier, item).all_parts]
                needed.update(self.dispatcher.verifiers[name].pool for name in names)
            else:
                needed[verifier.pool] += 1
        if needed["main"]:
            self.dispatcher.main.reserve(needed["main"])
        if needed["sandbox"]:
            self.dispatcher.sandbox.reserve(needed["sandbox"])

    def put(self, key: int, item: verifier_pb2.VerifyItem, verifier: Verifier[Any]) -> None:
        """Queue an admitted item."""
        if not isinstance(verifier, CompositeVerifier):
            self._put(item, verifier, lambda result: self.deliver(key, result))
            return
        parameters = _composite(verifier, item)
        collector = Collector(parameters, lambda result: self.deliver(key, result))
        for number, part in enumerate(part_items(item, parameters)):
            self._put(part, self.dispatcher.verifiers[part.verifier], collector.receiver(number))

    def feed(self) -> None:
        """Give what was put to workers that have room."""
        for lane in self._lanes.values():
            lane.pool.feed_all()

    def close(self) -> None:
        """The caller has gone or has all it wants."""
        self._closed = True
        for lane in self._lanes.values():
            lane.close()
        for task in self._tasks:
            task.cancel()

    def _put(
        self,
        item: verifier_pb2.VerifyItem,
        verifier: Verifier[Any],
        receive: Callable[[verifier_pb2.VerifyResult], None],
    ) -> None:
        pool = verifier.pool
        if isinstance(verifier, ServiceVerifier):
            task = asyncio.get_running_loop().create_task(self._ask(item, verifier, receive))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if pool == "sandbox":
            self.dispatcher.need_sandbox()
        self._number += 1
        self._arrivals[self._number] = receive
        self._lane(pool).put(self._number, item.SerializeToString(), verifier.cost)

    def _lane(self, pool: str) -> Lane:
        if pool not in self._lanes:
            source = self.dispatcher.sandbox if pool == "sandbox" else self.dispatcher.main
            self._lanes[pool] = source.lane(self._arrived)
        return self._lanes[pool]

    def _arrived(self, number: int, result: verifier_pb2.VerifyResult) -> None:
        self._arrivals.pop(number)(result)

    async def _ask(
        self,
        item: verifier_pb2.VerifyItem,
        verifier: Any,
        receive: Callable[[verifier_pb2.VerifyResult], None],
    ) -> None:
        started = time.perf_counter()
        try:
            parameters = read_parameters(verifier, item.parameters)
            verdict = await verifier.judge(Item(item.completion, item.reference, item.prompt), parameters)
            result = verdict_result(verdict)
        except ServiceError as error:
            result = verifier_pb2.VerifyResult(error=error.status())
        except Exception as error:
            log.warning("verifier %s failed on an item with %s", item.verifier, type(error).__name__)
            message = f"verifier {item.verifier} failed with {type(error).__name__} on this item"
            result = failed(status_pb2.UNAVAILABLE, message)  # no fault of the completion: never a zero
        result.seconds = time.perf_counter() - started
        if not self._closed:
            receive(result)


def _composite(verifier: CompositeVerifier, item: verifier_pb2.VerifyItem) -> CompositeParameters:
    parameters: Parameters = read_parameters(verifier, item.parameters)
    assert isinstance(parameters, CompositeParameters)
    return parameters
