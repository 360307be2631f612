"""An event loop in a thread of its own, and a decoder on it: for backends whose work is waiting for somebody else.

The engine calls a backend from threads and blocks them; vLLM's engine and HTTP clients are made for one event loop.
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
        """Cancel what still runs and end the thread. A second call does nothing."""
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


Complete = Callable[[GeneratePrompt, int, SamplingOptions, int], AsyncIterator[GenerateChunk]]
"""(prompt, index of the completion, options, priority) to its chunks, the last one with a finish reason."""


class LoopDecoder:
    """A `Decoder` (backends/base.py) that hands completions, one by one, to something that batches for itself.

    At most `max_rows` are handed over at a time, those of higher priorities first. A completion that fails comes out
    of `advance` as a ServiceError, which ends its request and no other.
    """

    def __init__(self, thread: LoopThread, complete: Complete, *, max_rows: int) -> None:
        self._thread = thread
        self._complete = complete
        self._max_rows = max_rows
        self._order = itertools.count()
        self._left: dict[int, int] = {}  # completions to come, by request; the caller's thread alone reads and writes
        self._out: queue.SimpleQueue[tuple[int, GenerateChunk | ServiceError, int]] = queue.SimpleQueue()
        # The loop's thread alone touches these.
        self._waiting: list[tuple[int, int, int, GeneratePrompt, int, SamplingOptions]] = []
        self._running: dict[asyncio.Task[None], int] = {}
        self.computed_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def add(self, request: int, prompts: Seq[GeneratePrompt], options: SamplingOptions, priority: int) -> None:
        self._left[request] = len(prompts) * options.n
        rows = [
            (-priority, next(self._order), request, prompt, index, options)
            for prompt in prompts
            for index in range(options.n)
        ]
        self._thread.loop.call_soon_threadsafe(self._admit, rows)

    def cancel(self, request: int) -> None:
        self._left.pop(request, None)
        self._thread.loop.call_soon_threadsafe(self._drop, request)

    def advance(self, seconds: float) -> list[tuple[int, GenerateChunk | ServiceError]]:
        """What came out, after waiting up to `seconds` for the first of it."""
        chunks: list[tuple[int, GenerateChunk | ServiceError]] = []
        wait = True
        while self.busy:
            try:
                request, chunk, computed = self._out.get(timeout=seconds) if wait else self._out.get_nowait()
            except queue.Empty:
                break
            self.computed_tokens += computed
            if request not in self._left:
                continue  # cancelled meanwhile
            wait = False
            chunks.append((request, chunk))
            if isinstance(chunk, ServiceError):
                self.cancel(request)
            elif chunk.finish_reason is not None:
                self._left[request] -= 1
                if not self._left[request]:
                    del self._left[request]
        return chunks

    def _admit(self, rows: Seq[tuple[int, int, int, GeneratePrompt, int, SamplingOptions]] = ()) -> None:
        for row in rows:
            heapq.heappush(self._waiting, row)
        while self._waiting and len(self._running) < self._max_rows:
            priority, _, request, prompt, index, options = heapq.heappop(self._waiting)
            task = self._thread.loop.create_task(self._row(request, prompt, index, options, -priority))
            self._running[task] = request
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._admit()

    def _drop(self, request: int) -> None:
        self._waiting = [row for row in self._waiting if row[2] != request]
        heapq.heapify(self._waiting)
        for task, of in self._running.items():
            if of == request:
                task.cancel()

    async def _row(
        self, request: int, prompt: GeneratePrompt, index: int, options: SamplingOptions, priority: int
    ) -> None:
        computed = len(prompt.ids)
        try:
            async with aclosing(self._complete(prompt, index, options, priority)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    self._out.put((request, chunk, computed + len(chunk.ids)))
                    computed = 0
        except ServiceError as error:
            self._out.put((request, error, computed))
        except Exception as error:
            log.exception("a completion failed")
            self._out.put((request, internal(error), computed))


def row_seed(prompt: GeneratePrompt, index: int, options: SamplingOptions) -> int:
    """The seed of one completion, which depends on nothing else in the request; 63 bits, as vLLM and SGLang take it."""
    return stream_key(options.seed, prompt.index, index) >> 1
