"""The usage of each tenant and run since the service started. Kept in this process's memory, and bounded."""

import time
from collections import OrderedDict
from dataclasses import astuple, dataclass

from vold_service.call import Call

MAX_RUNS = 1000
"""Runs of one tenant that have a row. Beyond it, the runs idle for longest are added up under `EARLIER_RUNS`."""

EARLIER_RUNS = "(earlier runs)"


@dataclass(slots=True)
class Counts:
    """scored_tokens: scored completion tokens. computed_tokens: positions that the model runs for them in a batch of
    their own, also for requests that were given up; what others send at the same time does not show in it. cache_hits:
    completions whose scores came from the cache. queue_seconds: time in the queue, summed over requests.
    """

    requests: int = 0
    scored_tokens: int = 0
    computed_tokens: float = 0.0
    cache_hits: int = 0
    queue_seconds: float = 0.0
    generated_tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(left + right for left, right in zip(astuple(self), astuple(other), strict=True)))


class Usage:
    """Counts by tenant and run. since: the start of counting, in seconds since 1970."""

    def __init__(self) -> None:
        self.since = time.time()
        self._tenants: dict[str, OrderedDict[str, Counts]] = {}

    def add(self, call: Call, counts: Counts) -> None:
        """Add `counts` to the call's tenant and run."""
        runs = self._tenants.setdefault(call.tenant.name, OrderedDict())
        runs[call.run_id] = runs.get(call.run_id, Counts()) + counts
        runs.move_to_end(call.run_id)
        while len(runs) > MAX_RUNS:
            oldest = next(run for run in runs if run != EARLIER_RUNS)
            oldest_counts = runs.pop(oldest)
            runs[EARLIER_RUNS] = runs.get(EARLIER_RUNS, Counts()) + oldest_counts

    def rows(self, tenant: str = "") -> list[tuple[str, str, Counts]]:
        """(tenant, run id, counts) of one tenant, or of all if `tenant` is empty, sorted by name."""
        names = [tenant] if tenant else sorted(self._tenants)
        return [(name, run, counts) for name in names for run, counts in sorted(self._tenants.get(name, {}).items())]
