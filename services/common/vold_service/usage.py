"""What each tenant and run has taken of a service since it started. In this process's memory, and bounded there."""

import time
from collections import OrderedDict
from dataclasses import astuple, dataclass

from vold_service.call import Call

MAX_RUNS = 1000
"""Runs of one tenant that are told apart; the ones idle for longest are added up under `EARLIER`."""

EARLIER = "(earlier runs)"


@dataclass(slots=True)
class Counts:
    """scored_tokens: completion tokens that were scored. computed_tokens: positions run through the model for them,
    padding and shared prompts divided among those they were for. cache_hits: completions whose scores were there
    already. queue_seconds: waited, the sum over requests.
    """

    requests: int = 0
    scored_tokens: int = 0
    computed_tokens: float = 0.0
    cache_hits: int = 0
    queue_seconds: float = 0.0
    generated_tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Usage:
    """Counts by tenant and run. since: when counting began, in seconds since 1970."""

    def __init__(self) -> None:
        self.since = time.time()
        self._tenants: dict[str, OrderedDict[str, Counts]] = {}

    def add(self, call: Call, counts: Counts) -> None:
        """Account `counts` to the call's tenant and run."""
        runs = self._tenants.setdefault(call.tenant.name, OrderedDict())
        runs[call.run_id] = runs.get(call.run_id, Counts()) + counts
        runs.move_to_end(call.run_id)
        while len(runs) > MAX_RUNS:
            oldest = next(run for run in runs if run != EARLIER)
            idle = runs.pop(oldest)
            runs[EARLIER] = runs.get(EARLIER, Counts()) + idle

    def of(self, tenant: str = "") -> list[tuple[str, str, Counts]]:
        """(tenant, run, counts) by name: of one tenant, or of all."""
        names = [tenant] if tenant else sorted(self._tenants)
        return [(name, run, counts) for name in names for run, counts in sorted(self._tenants.get(name, {}).items())]
