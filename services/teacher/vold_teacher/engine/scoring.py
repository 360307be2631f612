"""Scores sequences for many callers: their requests wait in one queue and are computed in batches.

A score in the cache is not computed again. A sequence that is being scored for one request is not scored again for
another of the same tenant, whose priority is no higher: that request waits for the score. Across tenants nothing is
waited for: the request of a fast tenant would wait in the place of a slow one, and would show it.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vold_service import tracing
from vold_service.call import Call
from vold_service.errors import ServiceError, deadline_exceeded, internal, unavailable
from vold_service.fairness import Claim
from vold_service.turns import Turn

from vold_teacher import metrics
from vold_teacher.backends.base import Backend, ScoredBatch
from vold_teacher.engine.cache import ScoreCache, fits, score_key
from vold_teacher.engine.queue import Entry, Job, ScoreQueue
from vold_teacher.types import Sequence, SequenceScore

log = logging.getLogger("vold.teacher.engine")

STOPPING = "the server is shutting down"

ScoreOrError = SequenceScore | ServiceError

OnComputed = Callable[[Call, float], None]
"""Called with positions that were run through the model for a call, whether or not its caller still waits."""


@dataclass(slots=True, eq=False)
class _ScoreJob(Job):
    """A Score request under way. keys: cache keys of its sequences, by index, without those that are not cached.
    futures: of its scores, by key, for the requests that wait for them. results: scores and errors so far. started:
    when its first batch began.
    """

    call: Call = field(default_factory=Call)
    keys: dict[int, bytes] = field(default_factory=dict)
    futures: dict[bytes, "asyncio.Future[ScoreOrError]"] = field(default_factory=dict)
    results: dict[int, ScoreOrError] = field(default_factory=dict)
    expected: int = 0
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    started: float | None = None
    compute_seconds: float = 0.0

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """scores: by index of the sequence; an error for a sequence that failed by itself.

    queue_seconds: until the first batch of the request began. compute_seconds: of its batches. cached: indices of the
    sequences that were not computed for this request.
    """

    scores: dict[int, ScoreOrError]
    queue_seconds: float
    compute_seconds: float
    cached: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Backlog:
    """Tokens and requests that wait to be scored. oldest_seconds: how long the oldest has waited; 0 if none waits."""

    tokens: int
    requests: int
    oldest_seconds: float


class Scorer:
    """The queue, the cache and the batches under way. `run` computes batches until it is cancelled, or the owner of the
    device calls `advance` for each.
    """

    def __init__(
        self,
        backend: Backend,
        queue: ScoreQueue,
        executor: ThreadPoolExecutor,
        cache: ScoreCache | None,
        has_work: asyncio.Event,
        on_computed: OnComputed,
    ) -> None:
        """executor: a thread for each batch that the backend takes at a time. cache: None caches nothing. has_work: set
        when a sequence is queued.
        """
        self.backend = backend
        self.queue = queue
        self.cache = cache
        self.active_requests = 0
        self._executor = executor
        info = backend.info
        self._model_key = f"{info.weights_fingerprint} {info.dtype} {info.backend}".encode()
        self._slots = asyncio.Semaphore(info.max_in_flight)
        # By tenant and key: a tenant neither waits for another's work nor learns of it.
        self._in_flight: dict[tuple[str, bytes], tuple[int, asyncio.Future[ScoreOrError]]] = {}
        self._has_work = has_work
        self._on_computed = on_computed
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens_per_second = 1000.0

    async def score(self, sequences: dict[int, Sequence], *, call: Call, priority: int = 0) -> ScoredRequest:
        """Score sequences by index. If the awaiting task is cancelled, sequences not yet begun are never computed."""
        if call.expired:
            raise deadline_exceeded()
        keys: dict[int, bytes | None] = {}
        turn = Turn()
        for index, sequence in sequences.items():
            keys[index] = score_key(sequence, self._model_key)
            await turn.pause()
        arrived, started, compute_seconds = time.monotonic(), None, 0.0
        self.active_requests += 1
        try:
            async with asyncio.timeout(call.remaining()):
                results = await self._cached_scores(sequences, keys)
                cached = set(results)
                # Another pass computes the sequences whose other request was cancelled or failed.
                while missing := {index: sequences[index] for index in sequences if index not in results}:
                    futures = {
                        index: future
                        for index in missing
                        if (future := self._future(call, keys[index], priority)) is not None
                    }
                    own = _without_duplicates({index: keys[index] for index in missing if index not in futures})
                    if own:
                        job = await self._compute({index: missing[index] for index in own}, own, call, priority)
                        results |= job.results
                        started = started or job.started
                        compute_seconds += job.compute_seconds
                    else:
                        await asyncio.wait(futures.values())
                    known = {key: results[index] for index, key in own.items() if key is not None}
                    known |= {
                        key: future.result()
                        for index, future in futures.items()
                        if (key := keys[index]) is not None and future.done() and not future.cancelled()
                    }
                    shared = {
                        index: known[key] for index in missing.keys() - own.keys() if (key := keys[index]) in known
                    }
                    metrics.COALESCED.inc(len(shared))
                    results |= shared
                    cached |= shared.keys()
        except TimeoutError as error:
            raise deadline_exceeded() from error
        finally:
            self.active_requests -= 1
        queue_seconds = (started or time.monotonic()) - arrived
        return ScoredRequest(results, queue_seconds, compute_seconds, frozenset(cached))

    def _future(self, call: Call, key: bytes | None, priority: int) -> "asyncio.Future[ScoreOrError] | None":
        """A score that another request of the tenant computes already, with at least this priority."""
        if key is None or (under_way := self._in_flight.get((call.tenant.name, key))) is None:
            return None
        return under_way[1] if under_way[0] >= priority else None

    def backlog(self) -> Backlog:
        return Backlog(self.queue.tokens, len(self.queue), self.queue.oldest_seconds())

    def fail_all(self, error: ServiceError) -> None:
        for job in self.queue.jobs():
            assert isinstance(job, _ScoreJob)
            job.fail(error)

    async def stop(self) -> None:
        """Cancel the batches under way; their requests fail as UNAVAILABLE."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def claim(self) -> Claim | None:
        """The claim of the tenant that is next on the device; None if nothing waits."""
        return self.queue.claim()

    async def advance(self) -> None:
        """Compute one batch."""
        if batch := self.queue.next_batch():
            await self._score_and_deliver(batch)

    async def run(self) -> None:
        """Keep as many batches under way as the backend takes."""
        while True:
            await self._slots.acquire()
            try:
                while not (batch := self.queue.next_batch()):
                    self._has_work.clear()
                    await self._has_work.wait()
            except BaseException:
                self._slots.release()
                raise
            task = asyncio.create_task(self._score_and_deliver(batch))
            self._tasks.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def _cached_scores(
        self, sequences: dict[int, Sequence], keys: dict[int, bytes | None]
    ) -> dict[int, ScoreOrError]:
        """Scores in the cache, by index."""
        if self.cache is None:
            return {}
        scores: dict[int, ScoreOrError] = {}
        missing: dict[bytes, list[int]] = {}
        for index, key in keys.items():
            if key is None:
                continue
            if (score := self.cache.get(key)) is not None:
                scores[index] = score
            else:
                missing.setdefault(key, []).append(index)
        if missing and self.cache.disk is not None:
            loaded = await asyncio.to_thread(self.cache.disk.load, list(missing))
            for key, score in loaded.items():
                if fits(score, sequences[missing[key][0]]):
                    self.cache.put(key, score)
                    scores |= dict.fromkeys(missing[key], score)
        metrics.CACHE_HITS.inc(len(scores))
        metrics.CACHE_MISSES.inc(sum(key is not None for key in keys.values()) - len(scores))
        return scores

    async def _compute(
        self, sequences: dict[int, Sequence], keys: dict[int, bytes | None], call: Call, priority: int
    ) -> _ScoreJob:
        """Compute these sequences. Returns the finished job; while it runs, other requests may wait for its scores."""
        job = _ScoreJob(call.tenant, priority, call=call, expected=len(sequences))
        job.keys = {index: key for index, key in keys.items() if key is not None}
        self.queue.put(job, sequences, tokens_per_second=self._tokens_per_second)
        tenant, loop = call.tenant.name, asyncio.get_running_loop()
        job.futures = {key: loop.create_future() for key in job.keys.values()}
        self._in_flight |= {(tenant, key): (priority, future) for key, future in job.futures.items()}
        self._has_work.set()
        try:
            await job.done
        finally:
            self.queue.cancel(job)
            for key, future in job.futures.items():
                _, current = self._in_flight.get((tenant, key), (0, None))
                if current is future:  # a request of a higher priority may compute it too
                    del self._in_flight[tenant, key]
                future.cancel()  # no effect on a finished future; requests that wait for the others compute them
        return job

    async def _score_and_deliver(self, batch: list[Entry]) -> None:
        try:
            await self._score_batch(batch)
        except BaseException as error:
            stopped = isinstance(error, asyncio.CancelledError)
            if not stopped:
                log.critical("a batch was lost", exc_info=error)
            for entry in batch:
                assert isinstance(entry.job, _ScoreJob)
                entry.job.fail(unavailable(STOPPING) if stopped else internal(error))
            if stopped:
                raise

    async def _score_batch(self, batch: list[Entry]) -> None:
        now = time.monotonic()
        live: list[tuple[_ScoreJob, Entry]] = []
        for entry in batch:
            job = entry.job
            assert isinstance(job, _ScoreJob)
            if job.call.expired:
                job.fail(deadline_exceeded())
                self.queue.share.charge(job.tenant, -entry.tokens)
            else:
                job.started = job.started or now
                live.append((job, entry))
        if not live:
            return
        sequences = [sequence for _, entry in live for sequence in entry.sequences.values()]
        jobs = {job for job, _ in live}
        scored: ScoredBatch | None
        try:
            with tracing.batch_span("score batch", (job.call.span for job in jobs)) as attributes:
                scored = await self._run_backend(sequences)
                attributes |= {
                    "requests": len(jobs),
                    "sequences": len(sequences),
                    "tokens": scored.real_tokens,
                    "padding": scored.computed_tokens - scored.real_tokens,
                }
        except ServiceError as error:
            for job, _ in live:
                job.fail(error)
            return
        except Exception:
            log.exception("a batch of %d sequences failed: each is scored by itself", len(sequences))
            scored = None
        if scored is None:  # not in the handler: its error holds the tensors of the failed batch, which fill the device
            await self._score_one_by_one(live)
            return
        seconds = time.monotonic() - now
        metrics.count_batch(scored, sum(len(sequence.completion) for sequence in sequences), seconds)
        self._tokens_per_second = 0.8 * self._tokens_per_second + 0.2 * scored.real_tokens / max(seconds, 1e-6)
        self._deliver_batch(live, scored, seconds)

    def _deliver_batch(self, live: list[tuple[_ScoreJob, Entry]], scored: ScoredBatch, seconds: float) -> None:
        """Split a batch's scores and cost among its jobs."""
        tokens = sum(entry.tokens for _, entry in live)
        outcomes = iter(scored.scores)
        job_tokens: Counter[_ScoreJob] = Counter()
        for job, entry in live:
            job_tokens[job] += entry.tokens
        computed = scored.computed_tokens / tokens
        self.queue.share.charge_all([(job.tenant, (computed - 1) * own) for job, own in job_tokens.items()])
        for job, own_tokens in job_tokens.items():
            job.compute_seconds += seconds
            self._on_computed(job.call, own_tokens)  # not its part of the batch, which depends on others' sequences
        for job, entry in live:
            own = itertools.islice(outcomes, len(entry.sequences))
            self._deliver(job, dict(zip(entry.sequences, own, strict=True)))

    async def _score_one_by_one(self, live: list[tuple[_ScoreJob, Entry]]) -> None:
        """Score each sequence by itself, so that the failing sequence fails no other."""
        for job, entry in live:
            for index, sequence in entry.sequences.items():
                if job.cancelled:
                    break
                outcome: ScoreOrError
                began = time.monotonic()
                try:
                    scored = await self._run_backend([sequence])
                    outcome = scored.scores[0]
                    seconds = time.monotonic() - began
                    metrics.count_batch(scored, len(sequence.completion), seconds)
                    self.queue.share.charge(job.tenant, scored.computed_tokens)
                    self._on_computed(job.call, scored.computed_tokens)
                    job.compute_seconds += seconds
                except ServiceError as error:
                    outcome = error
                except Exception as error:
                    log.exception("a sequence of %d tokens failed by itself", sequence.length)
                    outcome = internal(error)
                self._deliver(job, {index: outcome})

    def _deliver(self, job: _ScoreJob, outcomes: dict[int, ScoreOrError]) -> None:
        """Add results to a job and put its scores into the cache."""
        job.results |= outcomes
        new_scores: dict[bytes, SequenceScore] = {}
        for index, outcome in outcomes.items():
            key = job.keys.get(index)
            if key is None:
                continue
            _, current = self._in_flight.get((job.tenant.name, key), (0, None))
            for future in (job.futures.get(key), current):
                if future is not None and not future.done():
                    future.set_result(outcome)
            if self.cache is not None and isinstance(outcome, SequenceScore):
                new_scores[key] = outcome
                self.cache.put(key, outcome)
        if new_scores and self.cache is not None and self.cache.disk is not None:
            self.cache.disk.store(new_scores)
        if len(job.results) == job.expected and not job.done.done():
            job.done.set_result(None)

    async def _run_backend(self, sequences: list[Sequence]) -> ScoredBatch:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.backend.score, sequences)


def _without_duplicates(keys: dict[int, bytes | None]) -> dict[int, bytes | None]:
    """`keys` without the indices whose key an earlier index has."""
    seen: set[bytes] = set()
    first: dict[int, bytes | None] = {}
    for index, key in keys.items():
        if key is None or key not in seen:
            first[index] = key
        if key is not None:
            seen.add(key)
    return first
