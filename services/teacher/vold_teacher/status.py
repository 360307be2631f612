"""The teacher's state at a glance, for GET /v1/status and the page at / that shows it.

Everything comes from the metrics, so that the page and Prometheus agree, and the engine knows nothing of either.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from vold_proto.distribution import VERSION
from vold_proto.v1 import teacher_pb2 as pb
from vold_service import access
from vold_service.page import History, by_label, ratio, total
from vold_service.tenants import OPEN, Tenant

from vold_teacher import metrics
from vold_teacher.engine.scoring import Backlog
from vold_teacher.service import Teacher

_STARTED = time.time()


def backlog(teacher: Teacher) -> Backlog:
    """What waits for all of the models."""
    waiting = [model.engine.backlog() for model in teacher.models.values()]
    return Backlog(
        sum(one.tokens for one in waiting),
        sum(one.requests for one in waiting),
        max((one.oldest_seconds for one in waiting), default=0.0),
    )


def watch(teacher: Teacher) -> History:
    """Let the gauges of the queue read `teacher`, and keep the last minutes, from the history's `start` on."""
    metrics.watch_queue(
        lambda: backlog(teacher).tokens, lambda: backlog(teacher).requests, lambda: backlog(teacher).oldest_seconds
    )
    rates = {
        "scored": _of(metrics.SCORED_TOKENS),
        "generated": _of(metrics.GENERATED_TOKENS),
        "padding": _of(metrics.PADDING_TOKENS),
        "batches": _of(metrics.BATCH_TOKENS, "_count"),
        "batch_tokens": _of(metrics.BATCH_TOKENS, "_sum"),
        "answers": _of(metrics.STAGE_SECONDS, "_count", stage="queue"),
        "queue_seconds": _of(metrics.STAGE_SECONDS, "_sum", stage="queue"),
        "compute_seconds": _of(metrics.STAGE_SECONDS, "_sum", stage="compute"),
    }
    return History(rates, {"queued": lambda: backlog(teacher).tokens})


def snapshot(
    teacher: Teacher,
    history: History,
    *,
    ready: bool,
    viewer: Tenant = OPEN,
    usage: Callable[[], Iterable[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Plain values, for JSON. viewer: sees the other tenants' rows where it is an admin.

    usage: a row for each tenant {name, requests, tokens, queue_seconds}; from the metrics where it is None.
    """
    waiting = backlog(teacher)
    columns = history.columns()
    limits = teacher.engine_limits
    mean = history.mean
    hits, misses = total(metrics.CACHE_HITS), total(metrics.CACHE_MISSES)
    return {
        "ready": ready,
        "version": VERSION,
        "uptime_seconds": round(time.time() - _STARTED, 1),
        "queue": {
            "tokens": waiting.tokens,
            "requests": waiting.requests,
            "oldest_seconds": round(waiting.oldest_seconds, 3),
            "max_tokens": limits.max_queue_tokens,
            "generating": total(metrics.GENERATING),
        },
        "last_minute": {
            "scored_per_second": round(mean("scored"), 1),
            "generated_per_second": round(mean("generated"), 1),
            "batch_fill": ratio(mean("batch_tokens"), mean("batches") * limits.max_batch_tokens),
            "padding_share": ratio(mean("padding"), mean("batch_tokens")),
            "queue_seconds": ratio(mean("queue_seconds"), mean("answers")),
            "compute_seconds": ratio(mean("compute_seconds"), mean("answers")),
        },
        "totals": {
            "requests": total(metrics.REQUESTS),
            "scored_tokens": total(metrics.SCORED_TOKENS),
            "generated_tokens": total(metrics.GENERATED_TOKENS),
            "computed_tokens": total(metrics.COMPUTED_TOKENS),
            "padding_tokens": total(metrics.PADDING_TOKENS),
            "batches": total(metrics.BATCH_TOKENS, "_count"),
        },
        "cache": {
            "hits": hits,
            "misses": misses,
            "coalesced": total(metrics.COALESCED),
            "hit_rate": ratio(hits, hits + misses),
        },
        "rejected": by_label(access.REJECTED, "reason"),
        "tenants": _tenants(viewer, usage or _usage),
        "teachers": _teachers(teacher),
        "history": {name: columns[name] for name in ("scored", "generated", "queued")},
    }


def _of(metric: MetricWrapperBase, suffix: str | None = None, **labels: str) -> Callable[[], float]:
    return lambda: total(metric, suffix, **labels)


def _usage() -> Iterable[dict[str, Any]]:
    tokens = by_label(metrics.TENANT_TOKENS, "tenant")
    requests = by_label(access.TENANT_REQUESTS, "tenant")
    waited = by_label(metrics.TENANT_QUEUE_SECONDS, "tenant")
    for name in requests | tokens:
        yield {
            "name": name,
            "requests": requests.get(name, 0.0),
            "tokens": tokens.get(name, 0.0),
            "queue_seconds": round(waited.get(name, 0.0), 3),
        }


def _tenants(viewer: Tenant, usage: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Most tokens first, each with its share of all tokens."""
    rows = sorted(usage(), key=lambda row: -row["tokens"])
    everything = sum(row["tokens"] for row in rows)
    shown = [row for row in rows if viewer.admin or row["name"] == viewer.name]
    return [{**row, "share": ratio(row["tokens"], everything) or 0.0} for row in shown]


def _teachers(teacher: Teacher) -> list[dict[str, Any]]:
    """Those that serve, the default first, and those that are still loading."""
    rows: list[dict[str, Any]] = []
    for name in teacher.models:
        info = teacher.info(pb.GetInfoRequest(model=name))
        rows.append(
            {
                "name": info.identity.model,
                "revision": info.identity.revision,
                "weights_fingerprint": info.identity.weights_fingerprint,
                "tokenizer_fingerprint": info.identity.tokenizer_fingerprint,
                "backend": info.backend,
                "dtype": info.dtype,
                "vocab_size": info.vocab_size,
                "max_sequence": info.max_sequence,
                "max_top_k": info.max_top_k,
                "max_candidates": info.max_candidates,
                "capabilities": [field.name for field, value in info.capabilities.ListFields() if value],
            }
        )
    rows += [{"name": name, "revision": "", "error": "still loading"} for name in teacher.loading]
    return rows
