"""Generates completions for many callers, decoded together in slices of time."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from vold_proto.v1 import status_pb2
from vold_service.call import Call
from vold_service.errors import ServiceError, deadline_exceeded, internal
from vold_service.fairness import Claim, FairShare, QueueParts

from vold_teacher import metrics
from vold_teacher.backends.base import Backend, Decoder
from vold_teacher.engine.queue import check_room
from vold_teacher.engine.scoring import OnComputed
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions

log = logging.getLogger("vold.teacher.engine")

SLICE_SECONDS = 0.05
"""How long decoding holds the device at a time; also the longest that a cancelled request decodes on."""

MAX_UNREAD_BYTES = 64 << 20
"""Bytes of a request's chunks that wait for their reader."""

MAX_ENDED = 1000
"""Requests that ended and whose last work may still be accounted for."""

CHUNK_BYTES = 500
"""Of a chunk besides its arrays."""


@dataclass(slots=True, eq=False)
class _GenerateJob:
    """A Generate request under way. unfinished: completions still to come. unread: bytes of its events that wait to be
    read. ended: completions that its caller has ended, as (prompt, index).
    """

    number: int
    call: Call
    tokens: int
    unfinished: int
    events: asyncio.Queue[GenerateChunk | ServiceError] = field(default_factory=asyncio.Queue)
    unread: int = 0
    ended: set[tuple[int, int]] = field(default_factory=set)


class Generator:
    """The Generate requests under way. `run` decodes for them until it is cancelled, or the owner of the device calls
    `advance` for each slice.
    """

    def __init__(
        self,
        backend: Backend,
        max_tokens: int,
        executor: ThreadPoolExecutor,
        share: FairShare,
        has_work: asyncio.Event,
        on_computed: OnComputed,
    ) -> None:
        """max_tokens: of all requests under way, of which each tenant has its part. executor: the single device thread.
        share: of the device. has_work: set when a request comes or goes.
        """
        self.backend = backend
        self.jobs: dict[int, _GenerateJob] = {}
        self._parts = QueueParts(max_tokens)
        self._executor = executor
        self._share = share
        self._on_computed = on_computed
        self._decoder: Decoder = backend.decoder(share)
        self._calls: dict[int, Call] = {}  # also of requests that ended: work on them may end later
        self._to_add: list[tuple[int, Seq[GeneratePrompt], SamplingOptions, int]] = []
        self._to_cancel: list[int] = []
        self._to_end: list[tuple[int, int, int]] = []
        self._numbers = itertools.count()
        self._has_work = has_work
        self._tokens_per_second = 1000.0

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

        cut: returns how many tokens of a chunk are its completion's last, or None if the completion goes on.
        """
        if call.expired:
            raise deadline_exceeded()
        tokens = sum(len(prompt.ids) + options.n for prompt in prompts)
        check_room("prompts", tokens, self._parts, call.tenant, self._tokens_per_second)
        job = _GenerateJob(next(self._numbers), call, tokens, len(prompts) * options.n)
        if not job.unfinished:
            return
        self.jobs[job.number] = job
        self._calls[job.number] = call
        self._parts.add(call.tenant, tokens)
        metrics.GENERATING.inc()
        sampled = 0
        self._to_add.append((job.number, prompts, options, priority))
        self._has_work.set()
        try:
            while job.unfinished:
                # The timeout covers each wait alone: around a yield it would cancel the consumer's own awaits.
                event = await asyncio.wait_for(job.events.get(), call.remaining())
                if isinstance(event, ServiceError):
                    raise event
                job.unread -= _size(event)
                if (event.prompt, event.index) in job.ended:
                    continue
                if cut is not None and (kept := cut(event)) is not None:
                    if event.finish_reason is None:
                        job.ended.add((event.prompt, event.index))
                        self._to_end.append((job.number, event.prompt, event.index))
                    event = replace(event, ids=event.ids[:kept], logprobs=event.logprobs[:kept], finish_reason="stop")
                job.unfinished -= event.finish_reason is not None
                sampled += len(event.ids)
                yield event
        except TimeoutError as error:
            raise deadline_exceeded() from error
        finally:
            metrics.count_generate_request(call.tenant.name, sampled)
            del self.jobs[job.number]
            self._parts.add(call.tenant, -tokens)
            metrics.GENERATING.dec()
            if job.unfinished:
                self._to_cancel.append(job.number)
                self._has_work.set()

    def fail_all(self, error: ServiceError) -> None:
        for job in self.jobs.values():
            job.events.put_nowait(error)

    async def run(self) -> None:
        while True:
            while self.claim() is None:
                self._has_work.clear()
                await self._has_work.wait()
            await self.advance()

    def claim(self) -> Claim | None:
        """The claim of the tenant that is furthest behind, of those with completions waiting or running; None if there
        are none.
        """
        self._pass_changes()
        if not self._decoder.busy:
            return None
        return min(self._share.claim(tenant) for tenant in self._decoder.tenants())

    def _pass_changes(self) -> None:
        """Tell the decoder, which decodes nothing now, which requests came and went."""
        for number in self._to_cancel:
            self._decoder.cancel(number)
        self._to_cancel.clear()
        for number, prompt, index in self._to_end:
            self._decoder.end(number, prompt, index)
        self._to_end.clear()
        for number, prompts, options, priority in self._to_add:
            if number in self.jobs:
                self._decoder.add(number, prompts, options, priority, self.jobs[number].call.tenant)
        self._to_add.clear()
        ended = [number for number in self._calls if number not in self.jobs]
        for number in ended[:-MAX_ENDED]:
            del self._calls[number]

    async def advance(self) -> None:
        """Decode for one slice."""
        before, began = self._decoder.computed_tokens, time.monotonic()
        try:
            chunks = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._decoder.advance, SLICE_SECONDS
            )
        except Exception as error:
            log.exception("generation failed")
            self.fail_all(internal(error))
            self._decoder.close()
            self._decoder = self.backend.decoder(self._share)
            return
        finally:
            self._account()
        computed = self._decoder.computed_tokens - before
        metrics.COMPUTED_TOKENS.labels("generate").inc(computed)
        speed = computed / max(time.monotonic() - began, 1e-6)
        self._tokens_per_second = 0.8 * self._tokens_per_second + 0.2 * speed
        for number, chunk in chunks:
            if isinstance(chunk, GenerateChunk):
                metrics.GENERATED_TOKENS.inc(len(chunk.ids))
            if running := self.jobs.get(number):
                self._deliver(running, chunk)

    def _account(self) -> None:
        """Account for what was computed, whether or not its caller still waits."""
        for number, positions in self._decoder.take_positions().items():
            if (call := self._calls.get(number)) is not None:
                self._on_computed(call, positions)

    def _deliver(self, job: _GenerateJob, chunk: GenerateChunk | ServiceError) -> None:
        """Hand a chunk to the request's reader; a request whose chunks nobody reads ends."""
        if isinstance(chunk, GenerateChunk):
            job.unread += _size(chunk)
            if job.unread > MAX_UNREAD_BYTES:
                chunk = ServiceError(
                    status_pb2.RESOURCE_EXHAUSTED,
                    f"{job.unread} bytes of this request's completions wait to be read, over the limit of "
                    f"{MAX_UNREAD_BYTES}: read faster, or ask for fewer completions at a time",
                )
                self._to_cancel.append(job.number)
                # What waits is not read either: the error is the next event.
                job.events = asyncio.Queue()
        job.events.put_nowait(chunk)


def _size(chunk: GenerateChunk) -> int:
    """Bytes of memory, approximately."""
    return CHUNK_BYTES + chunk.ids.nbytes + chunk.logprobs.nbytes
