"""Runs the backend for many callers: batches of scoring and slices of generation take turns on one device thread."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from vold_service.call import Call
from vold_service.errors import ServiceError, internal, too_late, unavailable

from vold_teacher import metrics
from vold_teacher.backends.base import Backend, Decoder
from vold_teacher.engine.queue import Entry, Job, ScoreQueue, check_room
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence, SequenceScore

A = TypeVar("A")
T = TypeVar("T")

log = logging.getLogger("vold.teacher.engine")

GENERATE_SLICE_SECONDS = 0.05
"""How long decoding may hold the device while scoring waits; also how soon a cancelled generation stops."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_batch_tokens: of a scoring batch, padding included. max_queue_tokens: that may wait, of each kind."""

    max_batch_tokens: int
    max_queue_tokens: int


@dataclass(slots=True, eq=False)
class _ScoreJob(Job):
    call: Call = field(default_factory=Call)
    results: dict[int, SequenceScore | ServiceError] = field(default_factory=dict)
    expected: int = 0
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    compute_seconds: float = 0.0

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(slots=True, eq=False)
class _GenerateJob:
    number: int
    call: Call
    tokens: int
    left: int
    events: asyncio.Queue[GenerateChunk | ServiceError] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True, slots=True)
class Scored:
    """scores: by the index each sequence was given; an error for one that failed by itself.

    queue_seconds: until its first batch began. compute_seconds: of the batches it was part of.
    """

    scores: dict[int, SequenceScore | ServiceError]
    queue_seconds: float
    compute_seconds: float


class Engine:
    """Owns the backend and its thread. `start`, then `score` and `generate` from any task of one event loop."""

    def __init__(self, backend: Backend, limits: EngineLimits, executor: ThreadPoolExecutor) -> None:
        self.backend = backend
        self.limits = limits
        self._executor = executor
        self._queue = ScoreQueue(
            batch_tokens=limits.max_batch_tokens,
            max_tokens=limits.max_queue_tokens,
            shares_prompts=backend.info.shares_prompts,
        )
        self._decoder: Decoder = backend.decoder()
        self._generating: dict[int, _GenerateJob] = {}
        self._to_decoder: list[tuple[int, Seq[GeneratePrompt], SamplingOptions, int]] = []
        self._to_cancel: list[int] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tokens_per_second = 1000.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="engine")

    async def stop(self) -> None:
        """Fail what is left and free the thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await asyncio.to_thread(self._executor.shutdown)

    async def score(self, sequences: dict[int, Sequence], *, call: Call, priority: int = 0) -> Scored:
        """Score sequences by index. Cancel the awaiting task, and what has not begun is never computed."""
        if call.expired:
            raise too_late()
        job = _ScoreJob(priority=priority, call=call, expected=len(sequences))
        if sequences:
            self._queue.put(job, sequences, tokens_per_second=self._tokens_per_second)
            self._note_depth()
            self._wake.set()
            try:
                async with asyncio.timeout(call.remaining()):
                    await job.done
            except TimeoutError as error:
                raise too_late() from error
            finally:
                self._queue.drop(job)
                self._note_depth()
        started = job.started or job.submitted
        return Scored(job.results, started - job.submitted, job.compute_seconds)

    async def generate(
        self, prompts: Seq[GeneratePrompt], options: SamplingOptions, *, call: Call, priority: int = 0
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks as completions finish. Close the iterator, and its rows leave before the next decode step."""
        if call.expired:
            raise too_late()
        waiting = sum(job.tokens for job in self._generating.values())
        tokens = sum(len(prompt.ids) + options.n for prompt in prompts)
        check_room("prompts", tokens, waiting, self.limits.max_queue_tokens, self._tokens_per_second)
        job = _GenerateJob(next(self._numbers), call, tokens, len(prompts) * options.n)
        if not job.left:
            return
        self._generating[job.number] = job
        self._to_decoder.append((job.number, prompts, options, priority))
        self._note_depth()
        self._wake.set()
        try:
            while job.left:
                # The timeout is around each wait alone: around a yield it would cancel the consumer's own awaits.
                event = await asyncio.wait_for(job.events.get(), call.remaining())
                if isinstance(event, ServiceError):
                    raise event
                job.left -= event.finish_reason is not None
                yield event
        except TimeoutError as error:
            raise too_late() from error
        finally:
            del self._generating[job.number]
            if job.left:
                self._to_cancel.append(job.number)
                self._wake.set()
            self._note_depth()

    def _note_depth(self) -> None:
        metrics.QUEUED_TOKENS.set(self._queue.tokens)
        metrics.GENERATING.set(len(self._generating))

    async def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                worked = await self._score_batch()
                worked = await self._generate_slice() or worked
                if not worked:
                    await self._wake.wait()
        finally:
            self._fail_all(unavailable("the server is shutting down"))

    async def _score_batch(self) -> bool:
        batch = self._queue.next_batch()
        if not batch:
            return False
        now = time.monotonic()
        live: list[Entry] = []
        for entry in batch:
            job = entry.job
            assert isinstance(job, _ScoreJob)
            if job.call.expired:
                job.fail(too_late())
            else:
                job.started = job.started or now
                live.append(entry)
        if not live:
            return True
        sequences = [sequence for entry in live for sequence in entry.sequences.values()]
        try:
            scored = await self._on_device(self.backend.score, sequences)
        except Exception as error:
            log.exception("a batch of %d sequences failed", len(sequences))
            for entry in live:
                assert isinstance(entry.job, _ScoreJob)
                entry.job.fail(internal(error))
            return True
        seconds = time.monotonic() - now
        metrics.COMPUTED_TOKENS.labels("score").inc(scored.computed_tokens)
        metrics.BATCH_TOKENS.observe(scored.computed_tokens)
        metrics.PADDING_TOKENS.inc(scored.computed_tokens - scored.real_tokens)
        metrics.SCORED_TOKENS.inc(sum(len(sequence.completion) for sequence in sequences))
        self._tokens_per_second = 0.8 * self._tokens_per_second + 0.2 * scored.real_tokens / max(seconds, 1e-6)
        jobs = set()
        scores = iter(scored.scores)
        for entry in live:
            assert isinstance(entry.job, _ScoreJob)
            entry.job.results.update(zip(entry.sequences, itertools.islice(scores, len(entry.sequences)), strict=True))
            jobs.add(entry.job)
        for job in jobs:
            job.compute_seconds += seconds
            if len(job.results) == job.expected and not job.done.done():
                job.done.set_result(None)
        return True

    async def _generate_slice(self) -> bool:
        for number in self._to_cancel:
            self._decoder.cancel(number)
        self._to_cancel.clear()
        for number, prompts, options, priority in self._to_decoder:
            if number in self._generating:
                self._decoder.add(number, prompts, options, priority)
        self._to_decoder.clear()
        if not self._decoder.busy:
            return False
        before = self._decoder.computed_tokens
        try:
            chunks = await self._on_device(self._decoder.advance, GENERATE_SLICE_SECONDS)
        except Exception as error:
            log.exception("generation failed")
            for job in self._generating.values():
                job.events.put_nowait(internal(error))
            self._decoder = self.backend.decoder()
            return True
        metrics.COMPUTED_TOKENS.labels("generate").inc(self._decoder.computed_tokens - before)
        for number, chunk in chunks:
            if isinstance(chunk, GenerateChunk):
                metrics.GENERATED_TOKENS.inc(len(chunk.ids))
            if running := self._generating.get(number):
                running.events.put_nowait(chunk)
        return True

    async def _on_device(self, function: Callable[[A], T], argument: A) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, argument)

    def _fail_all(self, error: ServiceError) -> None:
        for job in self._queue.jobs():
            assert isinstance(job, _ScoreJob)
            job.fail(error)
        for running in self._generating.values():
            running.events.put_nowait(error)
