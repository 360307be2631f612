"""The teacher's Prometheus metrics. No label carries a prompt, an id or a run. A tenant's name is a label; the keys
file bounds their number. vold_service.access counts refusals and the tenants' requests.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram
from vold_service import access
from vold_service.errors import Code, ServiceError

from vold_teacher.backends.base import ScoredBatch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = Counter("vold_teacher_requests", "requests by face, method and outcome", ["face", "method", "code"])
LATENCY = Histogram(
    "vold_teacher_request_seconds", "from the request's arrival to its last byte", ["face", "method"], buckets=SECONDS
)
STAGE_SECONDS = Histogram(
    "vold_teacher_stage_seconds",
    "seconds of a Score request in each stage: parse, queue (until its first batch), compute (of the batches it was "
    "part of), serialize, total",
    ["stage"],
    buckets=(0.0001, 0.0005, 0.001, *SECONDS),
)
SCORED_TOKENS = Counter("vold_teacher_scored_tokens", "completion tokens scored")
GENERATED_TOKENS = Counter("vold_teacher_generated_tokens", "tokens sampled")
COMPUTED_TOKENS = Counter(
    "vold_teacher_computed_tokens",
    "positions run through the model, padding included; a prompt that completions of a batch share counts once",
    ["work"],
)
PADDING_TOKENS = Counter("vold_teacher_padding_tokens", "padding run through the model by scoring batches")
BATCH_TOKENS = Histogram(
    "vold_teacher_batch_tokens", "size of a scoring batch, padding included", buckets=[2**n for n in range(5, 18)]
)
BATCH_SECONDS = Histogram("vold_teacher_batch_seconds", "seconds that a scoring batch took", buckets=SECONDS)
CACHE_HITS = Counter("vold_teacher_cache_hits", "sequences whose score was in the cache")
CACHE_MISSES = Counter("vold_teacher_cache_misses", "sequences whose score was not in the cache")
COALESCED = Counter("vold_teacher_coalesced", "sequences that waited for the same sequence of another request")
TENANT_TOKENS = Counter("vold_teacher_tenant_tokens", "completion tokens by tenant and work", ["tenant", "work"])
TENANT_QUEUE_SECONDS = Counter(
    "vold_teacher_tenant_queue_seconds",
    "seconds that a tenant's Score requests waited for their first batch",
    ["tenant"],
)
QUEUED_TOKENS = Gauge("vold_teacher_queued_tokens", "tokens waiting to be scored")
QUEUED_REQUESTS = Gauge("vold_teacher_queued_requests", "requests with anything waiting to be scored")
QUEUE_AGE = Gauge("vold_teacher_queue_oldest_seconds", "how long the oldest of the waiting requests has waited")
GENERATING = Gauge("vold_teacher_generate_requests", "Generate requests under way")


def set_queue_gauges(tokens: Callable[[], float], requests: Callable[[], float], oldest: Callable[[], float]) -> None:
    """Let the queue's gauges call these functions whenever they are read."""
    QUEUED_TOKENS.set_function(tokens)
    QUEUED_REQUESTS.set_function(requests)
    QUEUE_AGE.set_function(oldest)


def count_batch(scored: ScoredBatch, completion_tokens: int, seconds: float) -> None:
    """Count a batch that the backend scored."""
    COMPUTED_TOKENS.labels("score").inc(scored.computed_tokens)
    BATCH_TOKENS.observe(scored.computed_tokens)
    BATCH_SECONDS.observe(seconds)
    PADDING_TOKENS.inc(scored.computed_tokens - scored.real_tokens)
    SCORED_TOKENS.inc(completion_tokens)


def count_score_request(tenant: str, tokens: int, queue_seconds: float, compute_seconds: float) -> None:
    """Count a Score request that has its scores. tokens: of its completions."""
    STAGE_SECONDS.labels("queue").observe(queue_seconds)
    STAGE_SECONDS.labels("compute").observe(compute_seconds)
    TENANT_TOKENS.labels(tenant, "scored").inc(tokens)
    TENANT_QUEUE_SECONDS.labels(tenant).inc(queue_seconds)
    access.add_figures(tokens=tokens, queue_seconds=round(queue_seconds, 6), compute_seconds=round(compute_seconds, 6))


def count_generate_request(tenant: str, tokens: int) -> None:
    """Count the tokens that a Generate request sampled, whether or not it was completed."""
    TENANT_TOKENS.labels(tenant, "generated").inc(tokens)
    access.add_figures(tokens=tokens)


@contextmanager
def time_stage(name: str) -> Iterator[None]:
    """Time a stage of a Score request."""
    began = time.monotonic()
    yield
    STAGE_SECONDS.labels(name).observe(time.monotonic() - began)


@contextmanager
def count_request(face: str, method: str) -> Iterator[None]:
    """Time a request and count it by its outcome."""
    began = time.monotonic()
    code = "INTERNAL"
    try:
        yield
        code = "OK"
    except ServiceError as error:
        code = Code.Name(error.code)
        access.record_error(error)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        code = "CANCELLED"
        raise
    finally:
        seconds = time.monotonic() - began
        REQUESTS.labels(face, method, code).inc()
        LATENCY.labels(face, method).observe(seconds)
        if method.startswith("Score") and code == "OK":
            STAGE_SECONDS.labels("total").observe(seconds)
