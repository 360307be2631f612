"""Status pages: one HTML file that needs nothing else, fed by GET /v1/status, and the last minutes it plots."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib import resources

from fastapi.responses import HTMLResponse
from prometheus_client.metrics import MetricWrapperBase

HISTORY_SECONDS = 300

# Nothing from elsewhere, no matter what a name on the page says.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(package: str) -> HTMLResponse:
    """The package's status.html with the style and the script that all status pages share."""
    text = (resources.files(package) / "status.html").read_text("utf-8")
    for mark, name in (("/*style*/", "status.css"), ("/*script*/", "status.js")):
        text = text.replace(mark, (resources.files("vold_service") / name).read_text("utf-8"))
    return HTMLResponse(text, headers={"content-security-policy": _POLICY, "cache-control": "no-store"})


def total(metric: MetricWrapperBase, suffix: str | None = None, **labels: str) -> float:
    """A metric's value over all its labels, or over those given. suffix: of the sample, where a kind has several."""
    found = 0.0
    for family in metric.collect():
        name = family.name + (suffix if suffix is not None else "_total" if family.type == "counter" else "")
        found += sum(
            sample.value for sample in family.samples if sample.name == name and labels.items() <= sample.labels.items()
        )
    return found


def by_label(counter: MetricWrapperBase, label: str) -> dict[str, float]:
    """A counter's value by one of its labels, largest first."""
    found: dict[str, float] = {}
    for family in counter.collect():
        for sample in family.samples:
            if sample.name == family.name + "_total":
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


class History:
    """Figures second by second, of the last `HISTORY_SECONDS`.

    rates: names of counters that only grow, kept as their growth in each second; levels: kept as they are.
    """

    def __init__(self, rates: Mapping[str, Callable[[], float]], levels: Mapping[str, Callable[[], float]]) -> None:
        self._rates = rates
        self._levels = levels
        self._columns: dict[str, deque[float]] = {name: deque(maxlen=HISTORY_SECONDS) for name in (*rates, *levels)}
        self._before = {name: read() for name, read in rates.items()}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="history")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def tick(self, seconds: float = 1.0) -> None:
        """Add a row. seconds: since the last one, by which growth is divided."""
        for name, read in self._rates.items():
            now = read()
            self._columns[name].append((now - self._before[name]) / seconds)
            self._before[name] = now
        for name, read in self._levels.items():
            self._columns[name].append(read())

    def columns(self) -> dict[str, list[float]]:
        """Oldest first; the last is of the second that has just passed."""
        return {name: [round(value, 3) for value in column] for name, column in self._columns.items()}

    def mean(self, name: str, seconds: int = 60) -> float:
        """Over the last `seconds`, or over what there is of them; 0 before the first."""
        values = list(self._columns[name])[-seconds:]
        return sum(values) / len(values) if values else 0.0

    async def _run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            self.tick(now - last)
            last = now
