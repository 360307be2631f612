"""The verifier's state, for GET /v1/status and the page at /. All figures come from the metrics."""

from typing import Any

from vold_service.page import MetricsHistory, by_label, common_status, hidden, ratio, total, total_of
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_verifier import metrics
from vold_verifier.engine.engine import Engine


def create_history() -> MetricsHistory:
    """Return the history that the page plots; call its `start` on the event loop."""
    return MetricsHistory(
        {
            "judged": total_of(metrics.ITEMS),
            "calls": total_of(metrics.CALL_SECONDS, "_count"),
            "call_seconds": total_of(metrics.CALL_SECONDS, "_sum"),
        },
        {"queued": total_of(metrics.QUEUED)},
    )


def snapshot(engine: Engine, history: MetricsHistory, *, ready: bool, viewer: Tenant = OPEN_TENANT) -> dict[str, Any]:
    """Return the state as values that JSON can carry. viewer: figures of all tenants together are null for a tenant
    that may not see them.
    """
    figures: dict[str, Any] = {
        "queue": {"items": total(metrics.QUEUED), "max_items": engine.settings.max_queued_items},
        "workers": {"up": total(metrics.WORKERS), "wanted": engine.dispatcher.target_workers},
        "restarts": by_label(metrics.RESTARTS, "reason"),
        "last_minute": {
            "judged_per_second": round(history.mean("judged"), 1),
            "call_seconds": ratio(history.mean("call_seconds"), history.mean("calls")),
        },
        "outcomes": by_label(metrics.ITEMS, "outcome"),
        "verifiers": [
            {
                "name": name,
                "items": items,
                "seconds": ratio(
                    total(metrics.ITEM_SECONDS, "_sum", verifier=name),
                    total(metrics.ITEM_SECONDS, "_count", verifier=name),
                ),
            }
            for name, items in by_label(metrics.ITEMS, "verifier").items()
        ],
        "history": history.series("judged", "queued"),
    }
    if not viewer.sees_all:
        figures = hidden(figures)
        figures["restarts"] = figures["outcomes"] = None  # their names are figures too
        figures["queue"]["max_items"] = engine.settings.max_queued_items
    return {
        **common_status(viewer, ready=ready),
        **figures,
        "sandbox": list(engine.dispatcher.sandbox.layers),
    }
