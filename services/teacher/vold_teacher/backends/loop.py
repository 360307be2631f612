"""An event loop in its own thread, and a decoder on it, for backends that wait for another engine.

The engine calls a backend from threads and blocks them; vLLM's engine and HTTP clients need one event loop.
"""

import asyncio
import itertools
import logging
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from collections.abc import Sequence as Seq
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from vold_service.errors import ServiceError, internal
from vold_service.fairness import FairQueue, FairShare
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_teacher.sampling import stream_key
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions

T = TypeVar("T")

log = logging.getLogger("vold.teacher.loop")


class LoopThread:
    """`run` a coroutine on the loop and wait for it, from any other thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def close(self) -> None:
        """Cancel all running tasks and end the thread. A second call does nothing."""
        if self.loop.is_closed():
            return
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=5)


CompletePrompt = Callable[[GeneratePrompt, int, SamplingOptions], AsyncIterator[GenerateChunk]]
"""(prompt, index of the completion, options) to chunks of the completion; the last has a finish reason."""


@dataclass(frozen=True, slots=True, eq=False)
class _Completion:
    """One completion of a request."""

    request: int
    tenant: Tenant
    prompt: GeneratePrompt
    index: int
    options: SamplingOptions

    @property
    def cost(self) -> int:
        """The most positions that it may take."""
        return len(self.prompt.ids) + self.prompt.max_tokens


class LoopDecoder:
    """A `Decoder` (backends/base.py) that passes single completions to an engine that batches them itself.

    At most `max_rows` completions run at a time: the others wait here, where the tenants' shares order them, and not in
    the engine, which knows no tenants. If a completion fails, `advance` returns a ServiceError, which ends its request
    and no other.
    """

    def __init__(
        self, thread: LoopThread, complete: CompletePrompt, *, max_rows: int, share: FairShare | None = None
    ) -> None:
        """max_rows: as many as the engine runs at once. share: of the engine."""
        self._thread = thread
        self._complete = complete
        self._max_rows = max_rows
        # Unfinished completions, as (prompt, index), by request; only the caller's thread reads and writes it.
        self._unfinished: dict[int, set[tuple[int, int]]] = {}
        self._tenants: dict[int, Tenant] = {}
        self._positions: dict[int, float] = {}
        self._results: queue.SimpleQueue[tuple[int, GenerateChunk | ServiceError]] = queue.SimpleQueue()
        # Written by the loop's thread: (request, positions) that the engine computed.
        self._computed: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        # Only the loop's thread reads and writes these.
        self._waiting: FairQueue[_Completion] = FairQueue(share)
        self._running: dict[asyncio.Task[None], _Completion] = {}
        self.computed_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._unfinished)

    def tenants(self) -> list[Tenant]:
        return [self._tenants[request] for request in self._unfinished]

    def take_positions(self) -> dict[int, float]:
        positions, self._positions = self._positions, {}
        return positions

    def close(self) -> None:
        for request in list(self._unfinished):
            self.cancel(request)

    def add(
        self,
        request: int,
        prompts: Seq[GeneratePrompt],
        options: SamplingOptions,
        priority: int,
        tenant: Tenant = OPEN_TENANT,
    ) -> None:
        self._unfinished[request] = {(prompt.index, index) for prompt in prompts for index in range(options.n)}
        self._tenants[request] = tenant
        completions = [
            _Completion(request, tenant, prompt, index, options) for prompt in prompts for index in range(options.n)
        ]
        self._thread.loop.call_soon_threadsafe(self._queue, completions, priority)

    def cancel(self, request: int) -> None:
        self._unfinished.pop(request, None)
        self._tenants.pop(request, None)
        self._thread.loop.call_soon_threadsafe(self._cancel_tasks, request)

    def end(self, request: int, prompt: int, index: int) -> None:
        self._close(request, prompt, index)
        self._thread.loop.call_soon_threadsafe(self._end_task, request, prompt, index)

    def advance(self, seconds: float) -> list[tuple[int, GenerateChunk | ServiceError]]:
        """New chunks, after waiting up to `seconds` for the first."""
        chunks: list[tuple[int, GenerateChunk | ServiceError]] = []
        wait = True
        while self.busy:
            try:
                request, chunk = self._results.get(timeout=seconds) if wait else self._results.get_nowait()
            except queue.Empty:
                break
            unfinished = self._unfinished.get(request, ())
            if not unfinished or (isinstance(chunk, GenerateChunk) and (chunk.prompt, chunk.index) not in unfinished):
                continue  # the request was cancelled, or the completion ended
            wait = False
            chunks.append((request, chunk))
            if isinstance(chunk, ServiceError):
                self.cancel(request)
            elif chunk.finish_reason is not None:
                self._close(request, chunk.prompt, chunk.index)
        while not self._computed.empty():
            request, positions = self._computed.get_nowait()
            self.computed_tokens += positions
            self._positions[request] = self._positions.get(request, 0.0) + positions
        return chunks

    def _close(self, request: int, prompt: int, index: int) -> None:
        if unfinished := self._unfinished.get(request):
            unfinished.discard((prompt, index))
            if not unfinished:
                del self._unfinished[request], self._tenants[request]

    def _queue(self, completions: list[_Completion], priority: int) -> None:
        for each in completions:
            self._waiting.put(each.tenant, each, each.cost, job=each.request, priority=priority)
        self._admit()

    def _admit(self) -> None:
        free = self._max_rows - len(self._running)
        if free <= 0 or not self._waiting:
            return
        running: Counter[str] = Counter()
        for each in self._running.values():
            running[each.tenant.name] += each.cost
        for waiting, _ in list(itertools.islice(self._waiting.in_order(running), free)):
            self._waiting.take(waiting)  # charged as it is computed
            task = self._thread.loop.create_task(self._run_completion(waiting.item))
            self._running[task] = waiting.item
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._admit()

    def _cancel_tasks(self, request: int) -> None:
        self._waiting.drop(request)
        for task, running in self._running.items():
            if running.request == request:
                task.cancel()

    def _end_task(self, request: int, prompt: int, index: int) -> None:
        for task, running in self._running.items():
            if (running.request, running.prompt.index, running.index) == (request, prompt, index):
                task.cancel()

    async def _run_completion(self, completion: _Completion) -> None:
        computed = len(completion.prompt.ids)
        try:
            async with aclosing(
                self._complete(completion.prompt, completion.index, completion.options)  # type: ignore[type-var]
            ) as chunks:
                async for chunk in chunks:
                    self._charge(completion, computed + len(chunk.ids))
                    computed = 0
                    self._results.put((completion.request, chunk))
        except ServiceError as error:
            self._results.put((completion.request, error))
        except Exception as error:
            log.exception("a completion failed")
            self._results.put((completion.request, internal(error)))
        finally:
            self._charge(completion, computed)  # the prompt, of which no chunk came

    def _charge(self, completion: _Completion, positions: int) -> None:
        if positions:
            self._waiting.share.charge(completion.tenant, positions)
            self._computed.put((completion.request, positions))


def completion_seed(prompt: GeneratePrompt, index: int, options: SamplingOptions) -> int:
    """The seed of one completion, independent of the others in its request; 63 bits, as vLLM and SGLang take it."""
    return stream_key(*prompt.seed_and_place(options), index) >> 1
