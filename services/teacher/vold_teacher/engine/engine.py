"""Runs one backend for many callers: scoring batches and slices of generation share its device.

Both are charged to their tenants in positions computed, in one account (vold_service.fairness). A device that takes one
batch at a time is given to the tenant that is furthest behind; one tenant's scoring and generation take turns. An
engine that batches for itself gets both at once, and at most as much as it runs at once.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from vold_service.call import Call
from vold_service.errors import ServiceError, internal, unavailable
from vold_service.fairness import FairShare

from vold_teacher.backends.base import Backend
from vold_teacher.engine.cache import ScoreCache
from vold_teacher.engine.generation import Generator
from vold_teacher.engine.queue import ScoreQueue
from vold_teacher.engine.scoring import STOPPING, Backlog, OnComputed, ScoredRequest, Scorer
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence

log = logging.getLogger("vold.teacher.engine")

RESTART_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_batch_tokens: of a scoring batch, padding included. max_queue_tokens: that may wait to be scored, and as many
    to be generated; each tenant has its part of them.
    """

    max_batch_tokens: int
    max_queue_tokens: int


class Engine:
    """Owns a backend and its threads. After `start`, call `score` and `generate` from any task of one event loop."""

    def __init__(
        self,
        backend: Backend,
        limits: EngineLimits,
        executor: ThreadPoolExecutor,
        cache: ScoreCache | None = None,
        on_computed: OnComputed = lambda call, positions: None,
    ) -> None:
        """executor: the single device thread, on which the backend was loaded. cache: None caches nothing.
        on_computed: accounts for what is computed.
        """
        self.backend = backend
        self._executor = executor
        info = backend.info
        # A backend that waits for another engine takes several batches at a time; each needs a thread to wait in.
        self._one_at_a_time = info.max_in_flight == 1
        self._scorers = executor if self._one_at_a_time else ThreadPoolExecutor(info.max_in_flight, "score")
        share = FairShare()
        self.queue = ScoreQueue(
            batch_tokens=limits.max_batch_tokens,
            max_tokens=limits.max_queue_tokens,
            layout=info.layout,
            share=share,
        )
        self._has_work = asyncio.Event()
        can_generate = self._has_work if self._one_at_a_time else asyncio.Event()
        self._scorer = Scorer(backend, self.queue, self._scorers, cache, self._has_work, on_computed)
        self._generator = Generator(backend, limits.max_queue_tokens, executor, share, can_generate, on_computed)
        self._request_ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for loop in (self._run_device,) if self._one_at_a_time else (self._scorer.run, self._generator.run):
            self._tasks.add(asyncio.create_task(self._run_forever(loop), name="engine"))

    async def stop(self) -> None:
        """Fail all pending requests and free the threads and the backend."""
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

    async def drain(self) -> None:
        """Wait until all requests have ended. The caller must let no new request in."""
        while self._scorer.active_requests or self._generator.jobs:
            self._request_ended.clear()
            await self._request_ended.wait()

    async def score(self, sequences: dict[int, Sequence], *, call: Call, priority: int = 0) -> ScoredRequest:
        """Score sequences by index. If the awaiting task is cancelled, sequences not yet begun are never computed."""
        try:
            return await self._scorer.score(sequences, call=call, priority=priority)
        finally:
            self._request_ended.set()

    async def generate(
        self,
        prompts: Seq[GeneratePrompt],
        options: SamplingOptions,
        *,
        call: Call,
        priority: int = 0,
        cut: Callable[[GenerateChunk], int | None] | None = None,
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks as completions finish. When the iterator is closed, its rows leave before the next decode step.

        cut: see Generator.generate.
        """
        try:
            async with aclosing(
                self._generator.generate(prompts, options, call=call, priority=priority, cut=cut)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._request_ended.set()

    def backlog(self) -> Backlog:
        return self._scorer.backlog()

    async def _run_device(self) -> None:
        """Compute one batch or one slice at a time, for the tenant that is furthest behind."""
        works: tuple[Scorer | Generator, ...] = (self._scorer, self._generator)
        last = works[1]
        while True:
            claims = [
                (claim, work is last, number)
                for number, work in enumerate(works)
                if (claim := work.claim()) is not None
            ]
            if not claims:
                self.queue.share.idle()
                self._has_work.clear()
                await self._has_work.wait()
                continue
            last = works[min(claims)[-1]]
            await last.advance()

    def waiting_tokens(self, tenant: str) -> int:
        """Tokens of one tenant that wait to be scored."""
        return self._scorer.queue.tokens_by_tenant().get(tenant, 0)

    async def _run_forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Restart `loop` after an error, which fails the pending requests and not the service."""
        while True:
            try:
                await loop()
            except Exception as error:
                log.critical("the engine failed and starts again", exc_info=error)
                self._fail_all(internal(error))
                await asyncio.sleep(RESTART_SECONDS)  # the failed requests leave: one may be the cause

    def _fail_all(self, error: ServiceError) -> None:
        self._scorer.fail_all(error)
        self._generator.fail_all(error)
