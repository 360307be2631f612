"""The verifier's state, for GET /v1/status and the page at /. All figures come from the metrics."""

import time
from collections.abc import Callable
from typing import Any

from vold_service import access
from vold_service.page import MetricsHistory, by_label, ratio, total

from vold_verifier import metrics
from vold_verifier.engine.engine import Engine

_STARTED = time.time()


def create_history() -> MetricsHistory:
    """Return the history that the page plots; call its `start` on the event loop."""

    def reader(*arguments: Any) -> Callable[[], float]:
        return lambda: total(*arguments)

    return MetricsHistory(
        {
            "judged": reader(metrics.ITEMS),
            "calls": reader(metrics.CALL_SECONDS, "_count"),
            "call_seconds": reader(metrics.CALL_SECONDS, "_sum"),
        },
        {"queued": reader(metrics.QUEUED)},
    )


def snapshot(engine: Engine, history: MetricsHistory, *, ready: bool) -> dict[str, Any]:
    """Return the state as values that JSON can carry."""
    columns = history.series()
    return {
        "ready": ready,
        "version": engine.server_version,
        "uptime_seconds": round(time.time() - _STARTED, 1),
        "queue": {"items": total(metrics.QUEUED), "max_items": engine.settings.max_queued_items},
        "workers": {"up": total(metrics.WORKERS), "wanted": engine.dispatcher.target_workers},
        "sandbox": list(engine.dispatcher.sandbox.layers),
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
        "rejected": by_label(access.REJECTED, "reason"),
        "history": {name: columns[name] for name in ("judged", "queued")},
    }
