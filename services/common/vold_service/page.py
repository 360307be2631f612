"""The pages for a browser, each a self-contained HTML file: the status page, which shows GET /v1/status, and the list
of routes. Also the fields that the status of every service has, and the metrics history that its page plots.
"""

import asyncio
import contextlib
import html
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from fastapi.responses import HTMLResponse
from prometheus_client.metrics import MetricWrapperBase
from vold_proto.distribution import VERSION

from vold_service import access
from vold_service.tenants import Tenant

HISTORY_SECONDS = 300

_STARTED = time.time()

# The page loads nothing from another origin, even if a name on the page contains HTML.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def status_page_reply(package: str, title: str) -> HTMLResponse:
    """The package's status.html in the frame, the stylesheet and the script that all status pages share."""
    text = _read("vold_service", "frame.html")
    for mark, part in (
        ("<!--title-->", html.escape(title)),
        ("/*style*/", _read("vold_service", "status.css")),
        ("/*script*/", _read("vold_service", "status.js")),
        ("<!--content-->", _read(package, "status.html")),
    ):
        text = text.replace(mark, part)
    return HTMLResponse(text, headers={"content-security-policy": _POLICY, "cache-control": "no-store"})


def routes_page_reply(openapi: dict[str, Any]) -> HTMLResponse:
    """The routes of an OpenAPI schema: method, path, description, and the schema of the body."""
    title, style = html.escape(openapi["info"]["title"]), _read("vold_service", "status.css")
    sections = []
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            about = operation.get("description") or operation.get("summary", "")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            shown = (
                f"<details><summary>JSON body</summary><pre>{html.escape(json.dumps(body, indent=2))}</pre></details>"
            )
            sections.append(
                f'<section class="card"><h2><code>{method.upper()} {html.escape(path)}</code></h2>'
                f"<p>{html.escape(about)}</p>{shown if body else ''}</section>"
            )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: routes</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><header><h1>{title}: routes</h1></header>'
        f'<main>{"".join(sections)}</main><footer><a href="openapi.json">as OpenAPI</a></footer></body></html>'
    )
    return HTMLResponse(page, headers={"content-security-policy": _POLICY})


def _read(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text("utf-8")


def common_status(viewer: Tenant, *, ready: bool) -> dict[str, Any]:
    """The fields that the status of every service has. A figure of all tenants together is null for a viewer that may
    not see it, so that nobody reckons another's part from it.
    """
    return {
        "ready": ready,
        "version": VERSION,
        "uptime_seconds": round(time.time() - _STARTED, 1),
        "rejected": by_label(access.REJECTED, "reason") if viewer.sees_all else None,
    }


def hidden(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with null for every number, and empty for every list."""
    return {
        name: hidden(value) if isinstance(value, dict) else [] if isinstance(value, list) else None
        for name, value in state.items()
    }


def total(metric: MetricWrapperBase, suffix: str | None = None, **labels: str) -> float:
    """The sum of a metric over all label values, or over the samples with these labels.

    suffix: of the sample's name, for a metric type with several samples ("_count", "_sum").
    """
    value = 0.0
    for family in metric.collect():
        name = family.name + (suffix if suffix is not None else "_total" if family.type == "counter" else "")
        value += sum(
            sample.value for sample in family.samples if sample.name == name and labels.items() <= sample.labels.items()
        )
    return value


def total_of(metric: MetricWrapperBase, suffix: str | None = None, **labels: str) -> Callable[[], float]:
    """A function that reads `total` of these arguments, for MetricsHistory."""
    return lambda: total(metric, suffix, **labels)


def by_label(counter: MetricWrapperBase, label: str) -> dict[str, float]:
    """A counter's value for each value of one label, largest first."""
    values: dict[str, float] = {}
    for family in counter.collect():
        for sample in family.samples:
            if sample.name == family.name + "_total":
                values[sample.labels[label]] = values.get(sample.labels[label], 0.0) + sample.value
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


class MetricsHistory:
    """Metrics of the last `HISTORY_SECONDS`, one sample a second.

    counters: read as growing values and kept as their growth per second. gauges: kept as read.
    """

    def __init__(self, counters: Mapping[str, Callable[[], float]], gauges: Mapping[str, Callable[[], float]]) -> None:
        self._counters = counters
        self._gauges = gauges
        self._series: dict[str, deque[float]] = {name: deque(maxlen=HISTORY_SECONDS) for name in (*counters, *gauges)}
        self._previous = {name: read() for name, read in counters.items()}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="history")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def sample(self, seconds: float = 1.0) -> None:
        """Add one sample of every metric. seconds: time since the last sample."""
        for name, read in self._counters.items():
            value = read()
            self._series[name].append((value - self._previous[name]) / seconds)
            self._previous[name] = value
        for name, read in self._gauges.items():
            self._series[name].append(read())

    def series(self, *names: str) -> dict[str, list[float]]:
        """The samples of these metrics, oldest first."""
        return {name: [round(value, 3) for value in self._series[name]] for name in names}

    def mean(self, name: str, seconds: int = 60) -> float:
        """The mean over the last `seconds` samples, or over all if there are fewer; 0 before the first sample."""
        values = list(self._series[name])[-seconds:]
        return sum(values) / len(values) if values else 0.0

    async def _run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            self.sample(now - last)
            last = now
