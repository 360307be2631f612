"""Where each item is verified: in a worker, in a sandboxed worker, or, if the verifier only waits for another server,
in a task of the service. The parts of a composite are dispatched separately.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.errors import ServiceError
from vold_service.tenants import Tenant

from vold_verifier import registry
from vold_verifier.engine.composite import OnVerified, PartCollector, part_items
from vold_verifier.engine.forkclient import ForkServerProcess
from vold_verifier.engine.options import main_options
from vold_verifier.engine.pool import Pool
from vold_verifier.engine.waiting import OnResult, RequestQueue
from vold_verifier.engine.worker import error_result, read_parameters, verdict_result
from vold_verifier.sandbox.confine import hide_memory
from vold_verifier.settings import VerifierSettings
from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.composite import CompositeParameters, CompositeVerifier

log = logging.getLogger("vold.verifier.dispatch")


@runtime_checkable
class ServiceVerifier(Protocol):
    """A verifier of pool "service": it waits for another server, in a task on the service's event loop."""

    async def verify(self, item: Item, parameters: Any, /) -> Verdict:
        """Raises ServiceError if there is no verdict."""
        ...

    async def close(self) -> None: ...


class Dispatcher:
    """The pools of workers. Call `start` and `stop` once each, on the event loop that serves."""

    def __init__(
        self,
        settings: VerifierSettings,
        verifiers: dict[str, Verifier[Any]],
        on_change: Callable[[], None],
        launched: ForkServerProcess | None = None,
    ) -> None:
        """on_change: called when `available` may have changed. launched: the main pool's fork server."""
        self.settings = settings
        self.verifiers = verifiers
        options = main_options(settings)
        self.main = Pool(options, on_change, launched)
        self.sandbox = Pool(
            replace(
                options,
                workers=settings.sandbox_workers or settings.workers,
                wall_seconds=settings.wall_limit + (settings.code_wall_limit if "code" in settings.enable else 0.0),
                memory_bytes=settings.sandbox_memory_bytes,
                sandbox=True,
            ),
            on_change,
        )
        self._sandbox_start: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether every pool that was started has its workers."""
        sandbox_started = self._sandbox_start is not None and self._sandbox_start.done()
        return self.main.available and (self.sandbox.available or not sandbox_started)

    @property
    def target_workers(self) -> int:
        """The number of workers while no worker is being replaced."""
        sandboxed = self.sandbox.options.workers if self._sandbox_start is not None else 0
        return self.main.options.workers + sandboxed

    async def wait_for_room(self, tenant: Tenant) -> None:
        """Wait until the tenant's part of each pool's queue has room."""
        await self.main.wait_for_room(tenant)
        await self.sandbox.wait_for_room(tenant)

    async def start(self) -> None:
        """Start the main pool, and the sandbox if a sandboxed verifier was enabled by name.

        Otherwise the sandbox's first item starts it. Raises OSError if the verifiers cannot be loaded, or if the
        sandbox cannot confine `code`.
        """
        sandboxed = registry.in_pool(self.verifiers, "sandbox")
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

    def ensure_sandbox(self) -> None:
        """Start the sandbox unless it was started. If the start fails, its queued items get UNAVAILABLE."""
        if self._sandbox_start is None:
            self._sandbox_start = asyncio.create_task(self._start_sandbox())
            self._sandbox_start.add_done_callback(self._on_sandbox_start)

    def _on_sandbox_start(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the sandbox cannot start: %s", error)
            self._sandbox_start = None
            self.sandbox.fail_queued("the sandbox that this verifier runs in cannot start: the server's log says why")

    async def _start_sandbox(self) -> None:
        hide_memory()  # the service's memory holds keys, and the sandbox may run as the same user
        await self.sandbox.start()
        layers = self.sandbox.layers
        log.info("the sandbox is confined by: %s", ", ".join(layers) or "resource limits alone")
        if "code" in self.verifiers and (fault := _isolation_fault(layers, self.settings.allow_weak_sandbox)):
            await self.sandbox.stop()
            raise OSError(
                f"`code` is enabled and cannot be confined here: {fault}, or leave out --enable code; "
                f"the available layers: {', '.join(layers) or 'none'}"
            )

    def open_submission(self, on_result: OnResult, tenant: Tenant) -> "Submission":
        return Submission(self, on_result, tenant)


def _isolation_fault(layers: Sequence[str], allow_weak: bool) -> str | None:
    """What is missing for programs that models wrote, and the remedy; None if nothing is."""
    if "seccomp" not in layers:
        return "it needs seccomp (libseccomp.so.2, on Linux): install libseccomp2"
    if not allow_weak and not any(layer == "namespaces" or layer.startswith("landlock") for layer in layers):
        return (
            "nothing keeps a program from reading the files that this service can read: allow it namespaces (start it "
            "as root with CAP_SYS_ADMIN) or Landlock, or accept that with --allow-weak-sandbox"
        )
    return None


class Submission:
    """The items of one request or stream: in a queue of each pool, and in tasks of the service.

    `on_result(key, result)` is called on the event loop, in no particular order of keys, never from within `add`.
    """

    def __init__(self, dispatcher: Dispatcher, on_result: OnResult, tenant: Tenant) -> None:
        self.dispatcher = dispatcher
        self.tenant = tenant
        self.on_result = on_result
        self._queues: dict[str, RequestQueue] = {}
        self._callbacks: dict[int, OnVerified] = {}
        self._last_number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def check_capacity(self, work: Iterable[tuple[verifier_pb2.VerifyItem, Verifier[Any]]]) -> None:
        """Raises RESOURCE_EXHAUSTED, with the delay before a retry, if the items do not fit in the queues."""
        needed: Counter[str] = Counter()
        for item, verifier in work:
            if isinstance(verifier, CompositeVerifier):
                names = [part.verifier for part in _composite_parameters(verifier, item).all_parts]
                needed.update(self.dispatcher.verifiers[name].pool for name in names)
            else:
                needed[verifier.pool] += 1
        if needed["main"]:
            self.dispatcher.main.check_capacity(needed["main"], self.tenant)
        if needed["sandbox"]:
            self.dispatcher.sandbox.check_capacity(needed["sandbox"], self.tenant)

    def add(self, key: int, item: verifier_pb2.VerifyItem, verifier: Verifier[Any]) -> None:
        """Queue a valid item. Call `dispatch` after a round of `add`."""
        if not isinstance(verifier, CompositeVerifier):
            self._add(item, verifier, lambda result: self.on_result(key, result))
            return
        parameters = _composite_parameters(verifier, item)
        collector = PartCollector(parameters, lambda result: self.on_result(key, result))
        for number, part in enumerate(part_items(item, parameters)):
            self._add(part, self.dispatcher.verifiers[part.verifier], collector.callback(number))

    def dispatch(self) -> None:
        """Send queued items to workers that have room."""
        for name in self._queues:
            self._pool(name).dispatch()

    def close(self) -> None:
        """Drop the queued items and the results to come: the caller has left or has all results."""
        self._closed = True
        for queue in self._queues.values():
            queue.close()
        for task in self._tasks:
            task.cancel()

    def _add(self, item: verifier_pb2.VerifyItem, verifier: Verifier[Any], on_verified: OnVerified) -> None:
        """Queue an item that is not a composite."""
        if isinstance(verifier, ServiceVerifier):
            task = asyncio.get_running_loop().create_task(self._verify_in_service(item, verifier, on_verified))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if verifier.pool == "sandbox":
            self.dispatcher.ensure_sandbox()
        self._last_number += 1
        self._callbacks[self._last_number] = on_verified
        self._queue(verifier.pool).put(self._last_number, item.SerializeToString(), verifier.cost)

    def _queue(self, pool_name: str) -> RequestQueue:
        if pool_name not in self._queues:
            self._queues[pool_name] = self._pool(pool_name).open_queue(self._on_worker_result, self.tenant)
        return self._queues[pool_name]

    def _pool(self, name: str) -> Pool:
        return self.dispatcher.sandbox if name == "sandbox" else self.dispatcher.main

    def _on_worker_result(self, number: int, result: verifier_pb2.VerifyResult) -> None:
        self._callbacks.pop(number)(result)

    async def _verify_in_service(self, item: verifier_pb2.VerifyItem, verifier: Any, on_verified: OnVerified) -> None:
        started = time.perf_counter()
        try:
            parameters = read_parameters(verifier, item.parameters)
            verdict = await verifier.verify(Item(item.completion, item.reference, item.prompt), parameters)
            result = verdict_result(verdict)
        except ServiceError as error:
            result = verifier_pb2.VerifyResult(error=error.status())
        except Exception as error:
            log.warning("verifier %s failed on an item with %s", item.verifier, type(error).__name__)
            message = f"verifier {item.verifier} failed with {type(error).__name__} on this item"
            # UNAVAILABLE never becomes a reward of 0: the completion is not at fault.
            result = error_result(status_pb2.UNAVAILABLE, message)
        result.seconds = time.perf_counter() - started
        if not self._closed:
            on_verified(result)


def _composite_parameters(verifier: CompositeVerifier, item: verifier_pb2.VerifyItem) -> CompositeParameters:
    parameters: Parameters = read_parameters(verifier, item.parameters)
    assert isinstance(parameters, CompositeParameters)
    return parameters
