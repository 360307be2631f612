"""The teacher's state, for GET /v1/status and the status page at /.

All figures come from the metrics: so the page and Prometheus agree, and the engine depends on neither.
"""

from collections.abc import Callable, Iterable
from typing import Any

from vold_proto.v1 import teacher_pb2 as pb
from vold_service import access
from vold_service.page import MetricsHistory, by_label, common_status, hidden, ratio, total, total_of
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_teacher import metrics
from vold_teacher.engine.scoring import Backlog
from vold_teacher.service import Teacher


def total_backlog(teacher: Teacher) -> Backlog:
    """The backlogs of all models together."""
    backlogs = [model.engine.backlog() for model in teacher.models.loaded.values()]
    return Backlog(
        sum(backlog.tokens for backlog in backlogs),
        sum(backlog.requests for backlog in backlogs),
        max((backlog.oldest_seconds for backlog in backlogs), default=0.0),
    )


def make_history(teacher: Teacher) -> MetricsHistory:
    """Connect the queue's gauges to `teacher`. Returns the history of the last minutes, which its caller starts."""
    metrics.set_queue_gauges(
        lambda: total_backlog(teacher).tokens,
        lambda: total_backlog(teacher).requests,
        lambda: total_backlog(teacher).oldest_seconds,
    )
    rates = {
        "scored": total_of(metrics.SCORED_TOKENS),
        "generated": total_of(metrics.GENERATED_TOKENS),
        "padding": total_of(metrics.PADDING_TOKENS),
        "batches": total_of(metrics.BATCH_TOKENS, "_count"),
        "batch_tokens": total_of(metrics.BATCH_TOKENS, "_sum"),
        "replies": total_of(metrics.STAGE_SECONDS, "_count", stage="queue"),
        "queue_seconds": total_of(metrics.STAGE_SECONDS, "_sum", stage="queue"),
        "compute_seconds": total_of(metrics.STAGE_SECONDS, "_sum", stage="compute"),
    }
    return MetricsHistory(rates, {"queued": lambda: total_backlog(teacher).tokens})


def snapshot(
    teacher: Teacher,
    history: MetricsHistory,
    *,
    ready: bool,
    viewer: Tenant = OPEN_TENANT,
    usage: Callable[[], Iterable[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The state as JSON values. viewer: who sees the figures of all tenants sees these, others their own: their row,
    their tokens in the queue, and null where a figure is of all together.

    usage: returns a row {name, requests, tokens, queue_seconds} per tenant; None takes them from the metrics.
    """
    backlog = total_backlog(teacher)
    limits = teacher.models.engine_limits
    figures: dict[str, Any] = {
        "queue": {
            "tokens": backlog.tokens,
            "requests": backlog.requests,
            "oldest_seconds": round(backlog.oldest_seconds, 3),
            "max_tokens": limits.max_queue_tokens,
            "generating": total(metrics.GENERATING),
        },
        "last_minute": _last_minute(history, limits.max_batch_tokens),
        "totals": _totals(),
        "cache": _cache(),
        "history": history.series("scored", "generated", "queued"),
    }
    if not viewer.sees_all:
        waiting = sum(model.engine.waiting_tokens(viewer.name) for model in teacher.models.loaded.values())
        figures = hidden(figures)
        figures["queue"] |= {"tokens": waiting, "max_tokens": limits.max_queue_tokens}
        figures["totals"] |= _own_totals(viewer.name)
    return {
        **common_status(viewer, ready=ready),
        **figures,
        "tenants": _tenant_rows(viewer, usage or _usage_rows),
        "teachers": _model_rows(teacher),
    }


def _last_minute(history: MetricsHistory, max_batch_tokens: int) -> dict[str, float | None]:
    mean = history.mean
    return {
        "scored_per_second": round(mean("scored"), 1),
        "generated_per_second": round(mean("generated"), 1),
        "batch_fill": ratio(mean("batch_tokens"), mean("batches") * max_batch_tokens),
        "padding_share": ratio(mean("padding"), mean("batch_tokens")),
        "queue_seconds": ratio(mean("queue_seconds"), mean("replies")),
        "compute_seconds": ratio(mean("compute_seconds"), mean("replies")),
    }


def _totals() -> dict[str, float]:
    return {
        "requests": total(metrics.REQUESTS),
        "scored_tokens": total(metrics.SCORED_TOKENS),
        "generated_tokens": total(metrics.GENERATED_TOKENS),
        "computed_tokens": total(metrics.COMPUTED_TOKENS),
        "padding_tokens": total(metrics.PADDING_TOKENS),
        "batches": total(metrics.BATCH_TOKENS, "_count"),
    }


def _own_totals(tenant: str) -> dict[str, float]:
    return {
        "requests": total(access.TENANT_REQUESTS, tenant=tenant),
        "scored_tokens": total(metrics.TENANT_TOKENS, tenant=tenant, work="scored"),
        "generated_tokens": total(metrics.TENANT_TOKENS, tenant=tenant, work="generated"),
    }


def _cache() -> dict[str, float | None]:
    hits, misses = total(metrics.CACHE_HITS), total(metrics.CACHE_MISSES)
    return {
        "hits": hits,
        "misses": misses,
        "coalesced": total(metrics.COALESCED),
        "hit_rate": ratio(hits, hits + misses),
    }


def _usage_rows() -> Iterable[dict[str, Any]]:
    tokens = by_label(metrics.TENANT_TOKENS, "tenant")
    requests = by_label(access.TENANT_REQUESTS, "tenant")
    queue_seconds = by_label(metrics.TENANT_QUEUE_SECONDS, "tenant")
    for name in requests | tokens:
        yield {
            "name": name,
            "requests": requests.get(name, 0.0),
            "tokens": tokens.get(name, 0.0),
            "queue_seconds": round(queue_seconds.get(name, 0.0), 3),
        }


def _tenant_rows(viewer: Tenant, usage: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows that `viewer` may see, most tokens first, each with its share of the tokens of these rows."""
    rows = [row for row in usage() if viewer.sees_all or row["name"] == viewer.name]
    rows.sort(key=lambda row: -row["tokens"])
    all_tokens = sum(row["tokens"] for row in rows)
    return [{**row, "share": ratio(row["tokens"], all_tokens) or 0.0} for row in rows]


def _model_rows(teacher: Teacher) -> list[dict[str, Any]]:
    """The loaded models, the default first, then the models that are still loading."""
    rows: list[dict[str, Any]] = []
    for name in teacher.models.loaded:
        info = teacher.get_info(pb.GetInfoRequest(model=name))
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
    rows += [{"name": name, "revision": "", "error": "still loading"} for name in teacher.models.loading]
    return rows
