"""Scores for many callers: their requests wait in one queue and are computed in batches.

What was scored before comes out of the cache, and what is being scored for somebody is not scored again for others.
"""

import asyncio
import itertools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vold_service import tracing
from vold_service.call import Call
from vold_service.errors import ServiceError, internal, too_late, unavailable

from vold_teacher import metrics
from vold_teacher.backends.base import Backend, ScoredBatch
from vold_teacher.engine.cache import ScoreCache, fingerprint
from vold_teacher.engine.queue import Entry, Job, ScoreQueue
from vold_teacher.types import Sequence, SequenceScore

log = logging.getLogger("vold.teacher.engine")

STOPPING = "the server is shutting down"

Outcome = SequenceScore | ServiceError


@dataclass(slots=True, eq=False)
class _ScoreJob(Job):
    """keys: of the sequences whose scores go into the cache, by index. computed_tokens: its part of its batches."""

    call: Call = field(default_factory=Call)
    keys: dict[int, bytes] = field(default_factory=dict)
    results: dict[int, Outcome] = field(default_factory=dict)
    expected: int = 0
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    started: float | None = None
    compute_seconds: float = 0.0
    computed_tokens: float = 0.0

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Scored:
    """scores: by the index each sequence was given; an error for one that failed by itself.

    queue_seconds: until its first batch began. compute_seconds: of the batches it was part of. computed_tokens: its
    part of theirs, padding included. cached: the indices that cost nothing.
    """

    scores: dict[int, Outcome]
    queue_seconds: float
    compute_seconds: float
    computed_tokens: float = 0.0
    cached: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits to be scored. oldest_seconds: how long the request that has waited longest has; 0 where none does."""

    tokens: int
    requests: int
    oldest_seconds: float


class Scorer:
    """The queue, the cache, and the batches under way. `run` it for as long as it is to score."""

    def __init__(
        self, backend: Backend, queue: ScoreQueue, executor: ThreadPoolExecutor, cache: ScoreCache | None
    ) -> None:
        """executor: one thread for each batch that the backend takes at a time. cache: None keeps nothing."""
        self.backend = backend
        self.queue = queue
        self.cache = cache
        self.calls = 0
        self._executor = executor
        info = backend.info
        self._model_key = f"{info.weights_fingerprint} {info.dtype} {info.backend}".encode()
        self._room = asyncio.Semaphore(info.max_in_flight)
        self._under_way: dict[bytes, asyncio.Future[Outcome]] = {}
        self._waiting = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens_per_second = 1000.0

    async def score(self, sequences: dict[int, Sequence], *, call: Call, priority: int = 0) -> Scored:
        """Score sequences by index. Cancel the awaiting task, and what has not begun is never computed."""
        if call.expired:
            raise too_late()
        keys = {index: fingerprint(sequence, self._model_key) for index, sequence in sequences.items()}
        arrived, began, spent, computed = time.monotonic(), None, 0.0, 0.0
        self.calls += 1
        try:
            async with asyncio.timeout(call.remaining()):
                results = await self._kept(keys)
                free = set(results)
                # Again for what somebody else was computing and gave up.
                while left := {index: sequences[index] for index in sequences if index not in results}:
                    shared = {index: self._under_way[key] for index in left if (key := keys[index]) in self._under_way}
                    own = _first_of_each({index: keys[index] for index in left if index not in shared})
                    if own:
                        job = await self._compute({index: left[index] for index in own}, own, call, priority)
                        results |= job.results
                        began = began or job.started
                        spent += job.compute_seconds
                        computed += job.computed_tokens
                    else:
                        await asyncio.wait(shared.values())
                    known = {key: results[index] for index, key in own.items() if key is not None}
                    known |= {
                        key: future.result()
                        for index, future in shared.items()
                        if (key := keys[index]) is not None and future.done() and not future.cancelled()
                    }
                    again = {index: known[key] for index in left.keys() - own.keys() if (key := keys[index]) in known}
                    metrics.COALESCED.inc(len(again))
                    results |= again
                    free |= again.keys()
        except TimeoutError as error:
            raise too_late() from error
        finally:
            self.calls -= 1
        return Scored(results, (began or time.monotonic()) - arrived, spent, computed, frozenset(free))

    def backlog(self) -> Backlog:
        return Backlog(self.queue.tokens, len(self.queue), self.queue.oldest_seconds())

    def fail_all(self, error: ServiceError) -> None:
        for job in self.queue.jobs():
            assert isinstance(job, _ScoreJob)
            job.fail(error)

    async def stop(self) -> None:
        """Answer the batches under way with an error."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def run(self) -> None:
        """Keep as many batches under way as the backend takes."""
        while True:
            await self._room.acquire()
            try:
                while not (batch := self.queue.next_batch()):
                    self._waiting.clear()
                    await self._waiting.wait()
            except BaseException:
                self._room.release()
                raise
            task = asyncio.create_task(self._score_and_deliver(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _kept(self, keys: dict[int, bytes | None]) -> dict[int, Outcome]:
        """What the cache has."""
        if self.cache is None:
            return {}
        found: dict[int, Outcome] = {}
        missing: dict[bytes, list[int]] = {}
        for index, key in keys.items():
            if key is None:
                continue
            if (score := self.cache.get(key)) is not None:
                found[index] = score
            else:
                missing.setdefault(key, []).append(index)
        if missing and self.cache.disk is not None:
            loaded = await asyncio.to_thread(self.cache.disk.load, list(missing))
            for key, score in loaded.items():
                self.cache.put(key, score)
                found |= dict.fromkeys(missing[key], score)
        metrics.CACHE_HITS.inc(len(found))
        metrics.CACHE_MISSES.inc(sum(key is not None for key in keys.values()) - len(found))
        return found

    async def _compute(
        self, sequences: dict[int, Sequence], keys: dict[int, bytes | None], call: Call, priority: int
    ) -> _ScoreJob:
        """The finished job of these sequences; while it is under way, others may wait for its scores."""
        job = _ScoreJob(call.tenant, priority, call=call, expected=len(sequences))
        job.keys = {index: key for index, key in keys.items() if key is not None}
        self.queue.put(job, sequences, tokens_per_second=self._tokens_per_second)
        futures = {key: asyncio.get_running_loop().create_future() for key in job.keys.values()}
        self._under_way |= futures
        self._waiting.set()
        try:
            await job.done
        finally:
            self.queue.drop(job)
            for key, future in futures.items():
                del self._under_way[key]
                future.cancel()  # nothing where it has its result; else whoever waits for it computes it instead
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
        finally:
            self._room.release()

    async def _score_batch(self, batch: list[Entry]) -> None:
        now = time.monotonic()
        live: list[tuple[_ScoreJob, Entry]] = []
        for entry in batch:
            job = entry.job
            assert isinstance(job, _ScoreJob)
            if job.call.expired:
                job.fail(too_late())
            else:
                job.started = job.started or now
                live.append((job, entry))
        if not live:
            return
        sequences = [sequence for _, entry in live for sequence in entry.sequences.values()]
        jobs = {job for job, _ in live}
        try:
            with tracing.batch("score batch", (job.call.span for job in jobs)) as attributes:
                scored = await self._on_device(sequences)
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
            await self._score_apart(live)
            return
        seconds = time.monotonic() - now
        metrics.note_batch(scored, sum(len(sequence.completion) for sequence in sequences), seconds)
        self._tokens_per_second = 0.8 * self._tokens_per_second + 0.2 * scored.real_tokens / max(seconds, 1e-6)
        tokens = sum(entry.tokens for _, entry in live)
        outcomes = iter(scored.scores)
        for job in jobs:
            job.compute_seconds += seconds
        for job, entry in live:
            job.computed_tokens += scored.computed_tokens * entry.tokens / tokens
            own = itertools.islice(outcomes, len(entry.sequences))
            self._deliver(job, dict(zip(entry.sequences, own, strict=True)))

    async def _score_apart(self, live: list[tuple[_ScoreJob, Entry]]) -> None:
        """Each sequence by itself, so that the one at fault costs no other."""
        for job, entry in live:
            for index, sequence in entry.sequences.items():
                if job.gone:
                    break
                outcome: Outcome
                began = time.monotonic()
                try:
                    scored = await self._on_device([sequence])
                    outcome = scored.scores[0]
                    seconds = time.monotonic() - began
                    metrics.note_batch(scored, len(sequence.completion), seconds)
                    job.computed_tokens += scored.computed_tokens
                    job.compute_seconds += seconds
                except ServiceError as error:
                    outcome = error
                except Exception as error:
                    log.exception("a sequence of %d tokens failed by itself", sequence.length)
                    outcome = internal(error)
                self._deliver(job, {index: outcome})

    def _deliver(self, job: _ScoreJob, outcomes: dict[int, Outcome]) -> None:
        """Give a job its scores, and keep them."""
        job.results |= outcomes
        kept: dict[bytes, SequenceScore] = {}
        for index, outcome in outcomes.items():
            key = job.keys.get(index)
            if key is None:
                continue
            future = self._under_way.get(key)
            if future is not None and not future.done():
                future.set_result(outcome)
            if self.cache is not None and isinstance(outcome, SequenceScore):
                kept[key] = outcome
                self.cache.put(key, outcome)
        if kept and self.cache is not None and self.cache.disk is not None:
            self.cache.disk.store(kept)
        if len(job.results) == job.expected and not job.done.done():
            job.done.set_result(None)

    async def _on_device(self, sequences: list[Sequence]) -> ScoredBatch:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.backend.score, sequences)


def _first_of_each(keys: dict[int, bytes | None]) -> dict[int, bytes | None]:
    """Without the indices whose key an earlier one has."""
    seen: set[bytes] = set()
    first: dict[int, bytes | None] = {}
    for index, key in keys.items():
        if key is None or key not in seen:
            first[index] = key
        if key is not None:
            seen.add(key)
    return first
