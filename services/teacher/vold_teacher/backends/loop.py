"""An event loop in its own thread, and a decoder on it, for backends that wait for another engine.

The engine calls a backend from threads and blocks them; vLLM's engine and HTTP clients need one event loop.
"""

import asyncio
import heapq
import itertools
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from collections.abc import Sequence as Seq
from contextlib import aclosing
from typing import Any, TypeVar

from vold_service.errors import ServiceError, internal

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


CompletePrompt = Callable[[GeneratePrompt, int, SamplingOptions, int], AsyncIterator[GenerateChunk]]
"""(prompt, index of the completion, options, priority) to chunks of the completion; the last has a finish reason."""


class LoopDecoder:
    """A `Decoder` (backends/base.py) that passes single completions to an engine that batches them itself.

    At most `max_rows` completions run at a time, higher priorities first. If a completion fails, `advance` returns a
    ServiceError, which ends its request and no other.
    """

    def __init__(self, thread: LoopThread, complete: CompletePrompt, *, max_rows: int) -> None:
        self._thread = thread
        self._complete = complete
        self._max_rows = max_rows
        self._order = itertools.count()
        # Unfinished completions, as (prompt, index), by request; only the caller's thread reads and writes it.
        self._unfinished: dict[int, set[tuple[int, int]]] = {}
        self._results: queue.SimpleQueue[tuple[int, GenerateChunk | ServiceError, int]] = queue.SimpleQueue()
        # Only the loop's thread reads and writes these.
        self._waiting: list[tuple[int, int, int, GeneratePrompt, int, SamplingOptions]] = []
        self._running: dict[asyncio.Task[None], tuple[int, int, int]] = {}  # (request, prompt, index)
        self.computed_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._unfinished)

    def add(self, request: int, prompts: Seq[GeneratePrompt], options: SamplingOptions, priority: int) -> None:
        self._unfinished[request] = {(prompt.index, index) for prompt in prompts for index in range(options.n)}
        rows = [
            (-priority, next(self._order), request, prompt, index, options)
            for prompt in prompts
            for index in range(options.n)
        ]
        self._thread.loop.call_soon_threadsafe(self._admit, rows)

    def cancel(self, request: int) -> None:
        self._unfinished.pop(request, None)
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
                request, chunk, computed = self._results.get(timeout=seconds) if wait else self._results.get_nowait()
            except queue.Empty:
                break
            self.computed_tokens += computed
            unfinished = self._unfinished.get(request, ())
            if not unfinished or (isinstance(chunk, GenerateChunk) and (chunk.prompt, chunk.index) not in unfinished):
                continue  # the request was cancelled, or the completion ended
            wait = False
            chunks.append((request, chunk))
            if isinstance(chunk, ServiceError):
                self.cancel(request)
            elif chunk.finish_reason is not None:
                self._close(request, chunk.prompt, chunk.index)
        return chunks

    def _close(self, request: int, prompt: int, index: int) -> None:
        if unfinished := self._unfinished.get(request):
            unfinished.discard((prompt, index))
            if not unfinished:
                del self._unfinished[request]

    def _admit(self, rows: Seq[tuple[int, int, int, GeneratePrompt, int, SamplingOptions]] = ()) -> None:
        for row in rows:
            heapq.heappush(self._waiting, row)
        while self._waiting and len(self._running) < self._max_rows:
            priority, _, request, prompt, index, options = heapq.heappop(self._waiting)
            task = self._thread.loop.create_task(self._run_completion(request, prompt, index, options, -priority))
            self._running[task] = (request, prompt.index, index)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._admit()

    def _cancel_tasks(self, request: int) -> None:
        self._waiting = [row for row in self._waiting if row[2] != request]
        heapq.heapify(self._waiting)
        for task, running in self._running.items():
            if running[0] == request:
                task.cancel()

    def _end_task(self, request: int, prompt: int, index: int) -> None:
        for task, running in self._running.items():
            if running == (request, prompt, index):
                task.cancel()

    async def _run_completion(
        self, request: int, prompt: GeneratePrompt, index: int, options: SamplingOptions, priority: int
    ) -> None:
        computed = len(prompt.ids)
        try:
            async with aclosing(self._complete(prompt, index, options, priority)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    self._results.put((request, chunk, computed + len(chunk.ids)))
                    computed = 0
        except ServiceError as error:
            self._results.put((request, error, computed))
        except Exception as error:
            log.exception("a completion failed")
            self._results.put((request, internal(error), computed))


def completion_seed(prompt: GeneratePrompt, index: int, options: SamplingOptions) -> int:
    """The seed of one completion, independent of the others in its request; 63 bits, as vLLM and SGLang take it."""
    return stream_key(*prompt.seed_and_place(options), index) >> 1
