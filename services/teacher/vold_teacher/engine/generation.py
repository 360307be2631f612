"""Completions for many callers, decoded together in slices of time."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vold_service.call import Call
from vold_service.errors import ServiceError, internal, too_late

from vold_teacher import metrics
from vold_teacher.backends.base import Backend, Decoder
from vold_teacher.engine.queue import check_room
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions

log = logging.getLogger("vold.teacher.engine")

SLICE_SECONDS = 0.05
"""How long decoding may hold the device while scoring waits; also how soon a cancelled generation stops."""


@dataclass(slots=True, eq=False)
class _GenerateJob:
    number: int
    call: Call
    tokens: int
    left: int
    events: asyncio.Queue[GenerateChunk | ServiceError] = field(default_factory=asyncio.Queue)


class Generator:
    """The rows being decoded. `run` it for as long as it is to generate."""

    def __init__(self, backend: Backend, max_tokens: int, executor: ThreadPoolExecutor) -> None:
        """max_tokens: that may be under way. executor: the device's one thread."""
        self.backend = backend
        self.calls: dict[int, _GenerateJob] = {}
        self._max_tokens = max_tokens
        self._executor = executor
        self._decoder: Decoder = backend.decoder()
        self._to_decoder: list[tuple[int, Seq[GeneratePrompt], SamplingOptions, int]] = []
        self._to_cancel: list[int] = []
        self._numbers = itertools.count()
        self._waiting = asyncio.Event()
        self._tokens_per_second = 1000.0

    async def generate(
        self, prompts: Seq[GeneratePrompt], options: SamplingOptions, *, call: Call, priority: int = 0
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks as completions finish. Close the iterator, and its rows leave before the next decode step."""
        if call.expired:
            raise too_late()
        waiting = sum(job.tokens for job in self.calls.values())
        tokens = sum(len(prompt.ids) + options.n for prompt in prompts)
        check_room("prompts", tokens, waiting, self._max_tokens, self._tokens_per_second)
        job = _GenerateJob(next(self._numbers), call, tokens, len(prompts) * options.n)
        if not job.left:
            return
        self.calls[job.number] = job
        metrics.GENERATING.inc()
        sampled = 0
        self._to_decoder.append((job.number, prompts, options, priority))
        self._waiting.set()
        try:
            while job.left:
                # The timeout is around each wait alone: around a yield it would cancel the consumer's own awaits.
                event = await asyncio.wait_for(job.events.get(), call.remaining())
                if isinstance(event, ServiceError):
                    raise event
                job.left -= event.finish_reason is not None
                sampled += len(event.ids)
                yield event
        except TimeoutError as error:
            raise too_late() from error
        finally:
            metrics.note_generated(call.tenant.name, sampled)
            del self.calls[job.number]
            metrics.GENERATING.dec()
            if job.left:
                self._to_cancel.append(job.number)
                self._waiting.set()

    def fail_all(self, error: ServiceError) -> None:
        for job in self.calls.values():
            job.events.put_nowait(error)

    async def run(self) -> None:
        while True:
            while not await self._generate_slice():
                self._waiting.clear()
                await self._waiting.wait()

    async def _generate_slice(self) -> bool:
        for number in self._to_cancel:
            self._decoder.cancel(number)
        self._to_cancel.clear()
        for number, prompts, options, priority in self._to_decoder:
            if number in self.calls:
                self._decoder.add(number, prompts, options, priority)
        self._to_decoder.clear()
        if not self._decoder.busy:
            return False
        before, began = self._decoder.computed_tokens, time.monotonic()
        try:
            chunks = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._decoder.advance, SLICE_SECONDS
            )
        except Exception as error:
            log.exception("generation failed")
            self.fail_all(internal(error))
            self._decoder = self.backend.decoder()
            return True
        computed = self._decoder.computed_tokens - before
        metrics.COMPUTED_TOKENS.labels("generate").inc(computed)
        speed = computed / max(time.monotonic() - began, 1e-6)
        self._tokens_per_second = 0.8 * self._tokens_per_second + 0.2 * speed
        for number, chunk in chunks:
            if isinstance(chunk, GenerateChunk):
                metrics.GENERATED_TOKENS.inc(len(chunk.ids))
            if running := self.calls.get(number):
                running.events.put_nowait(chunk)
        return True
