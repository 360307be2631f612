"""The verifier's Prometheus metrics."""

from prometheus_client import Counter, Gauge, Histogram

ITEMS = Counter("vold_verifier_items", "items verified, by verifier and outcome", ["verifier", "outcome"])
ITEM_SECONDS = Histogram(
    "vold_verifier_item_seconds",
    "wall-clock seconds in a worker, per item",
    ["verifier"],
    buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
)
CALL_SECONDS = Histogram(
    "vold_verifier_call_seconds",
    "wall-clock seconds of a Verify call, queue included",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)
CACHE_HITS = Counter("vold_verifier_cache_hits", "items whose verdict was in the cache")
CACHE_MISSES = Counter("vold_verifier_cache_misses", "items whose verdict was not in the cache")
CACHE_BYTES = Gauge("vold_verifier_cache_bytes", "memory that the cached verdicts take")
REPEATED = Counter("vold_verifier_repeated_items", "items that equal an earlier item of their batch")
LIGHT = Counter("vold_verifier_light_items", "items verified without a worker: plain numbers")
QUEUED = Gauge("vold_verifier_queued_items", "items waiting for a worker")
WORKERS = Gauge("vold_verifier_workers", "worker processes that are up")
RESTARTS = Counter("vold_verifier_worker_restarts", "workers replaced, by reason", ["reason"])
