"""Runs a backend for many callers: batches of scoring and slices of generation, by turns on one device."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from vold_service.call import Call
from vold_service.errors import ServiceError, internal, unavailable

from vold_teacher.backends.base import Backend
from vold_teacher.engine.cache import ScoreCache
from vold_teacher.engine.generation import Generator
from vold_teacher.engine.queue import ScoreQueue
from vold_teacher.engine.scoring import STOPPING, Backlog, Scored, Scorer
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence

log = logging.getLogger("vold.teacher.engine")

RESTART_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_batch_tokens: of a scoring batch, padding included. max_queue_tokens: that may wait, of each kind."""

    max_batch_tokens: int
    max_queue_tokens: int


class Engine:
    """Owns the backend and its threads. `start`, then `score` and `generate` from any task of one event loop."""

    def __init__(
        self, backend: Backend, limits: EngineLimits, executor: ThreadPoolExecutor, cache: ScoreCache | None = None
    ) -> None:
        """executor: the device's one thread, on which the backend was loaded. cache: None keeps nothing."""
        self.backend = backend
        self._executor = executor
        info = backend.info
        # Backends that wait for others take several batches at a time; each needs a thread to wait in.
        self._scorers = executor if info.max_in_flight == 1 else ThreadPoolExecutor(info.max_in_flight, "score")
        self.queue = ScoreQueue(
            batch_tokens=limits.max_batch_tokens,
            max_tokens=limits.max_queue_tokens,
            layout=info.layout,
        )
        self._scorer = Scorer(backend, self.queue, self._scorers, cache)
        self._generator = Generator(backend, limits.max_queue_tokens, executor)
        self._left = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for loop in (self._scorer.run, self._generator.run):
            self._tasks.add(asyncio.create_task(self._for_ever(loop), name="engine"))

    async def stop(self) -> None:
        """Fail what is left and free the threads and the backend."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._scorer.stop()
        self._fail_all(unavailable(STOPPING))
        if self._scorers is not self._executor:
            await asyncio.to_thread(self._scorers.shutdown)
        await asyncio.get_running_loop().run_in_executor(self._executor, self.backend.close)
        await asyncio.to_thread(self._executor.shutdown)

    async def drained(self) -> None:
        """Wait until nothing is under way; for when nothing new can come."""
        while self._scorer.calls or self._generator.calls:
            self._left.clear()
            await self._left.wait()

    async def score(self, sequences: dict[int, Sequence], *, call: Call, priority: int = 0) -> Scored:
        """Score sequences by index. Cancel the awaiting task, and what has not begun is never computed."""
        try:
            return await self._scorer.score(sequences, call=call, priority=priority)
        finally:
            self._left.set()

    async def generate(
        self, prompts: Seq[GeneratePrompt], options: SamplingOptions, *, call: Call, priority: int = 0
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks as completions finish. Close the iterator, and its rows leave before the next decode step."""
        try:
            async with aclosing(self._generator.generate(prompts, options, call=call, priority=priority)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._left.set()

    def backlog(self) -> Backlog:
        return self._scorer.backlog()

    async def _for_ever(self, loop: Callable[[], Awaitable[None]]) -> None:
        """A fault of ours costs the requests that are here, and not the service."""
        while True:
            try:
                await loop()
            except Exception as error:
                log.critical("the engine failed and starts again", exc_info=error)
                self._fail_all(internal(error))
                await asyncio.sleep(RESTART_SECONDS)  # the callers leave, and with them what may be the cause

    def _fail_all(self, error: ServiceError) -> None:
        self._scorer.fail_all(error)
        self._generator.fail_all(error)
