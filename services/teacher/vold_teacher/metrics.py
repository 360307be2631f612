"""What the teacher counts, for Prometheus. No label carries a prompt, an id or a caller."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram
from vold_service.errors import Code, ServiceError

REQUESTS = Counter("vold_teacher_requests", "requests by face, method and outcome", ["face", "method", "code"])
LATENCY = Histogram(
    "vold_teacher_request_seconds",
    "from the request's arrival to its last byte",
    ["face", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
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
QUEUED_TOKENS = Gauge("vold_teacher_queued_tokens", "tokens waiting to be scored")
CACHE_HITS = Counter("vold_teacher_cache_hits", "completions whose scores were known")
CACHE_MISSES = Counter("vold_teacher_cache_misses", "completions whose scores were not known")
COALESCED = Counter("vold_teacher_coalesced", "completions that waited for the same one of another request")
GENERATING = Gauge("vold_teacher_generate_requests", "Generate requests under way")


@contextmanager
def counted(face: str, method: str) -> Iterator[None]:
    """Count a request by its outcome and time it."""
    began = time.monotonic()
    code = "INTERNAL"
    try:
        yield
        code = "OK"
    except ServiceError as error:
        code = Code.Name(error.code)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        code = "CANCELLED"
        raise
    finally:
        REQUESTS.labels(face, method, code).inc()
        LATENCY.labels(face, method).observe(time.monotonic() - began)
