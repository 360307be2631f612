"""What an engine knows of a call, whichever face it came through."""

import time
import uuid
from dataclasses import dataclass, field, replace

from vold_service import access, tracing
from vold_service.keys import EVERYBODY, Grant
from vold_service.tenants import OPEN, Tenant


@dataclass(frozen=True, slots=True)
class Call:
    """request_id: the caller's, or one made here. deadline: on time.monotonic()'s clock; None for none.

    tenant: who asks. run_id: the caller's training run, for accounting. run_of_key: whether the run is the API key's,
    so that a message cannot name another. span: of the request, where it is traced.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    run_id: str = ""
    deadline: float | None = None
    tenant: Tenant = OPEN
    run_of_key: bool = False
    span: tracing.Span = field(default_factory=access.current_span, repr=False, compare=False)

    @classmethod
    def start(
        cls, request_id: str = "", run_id: str = "", timeout_seconds: float | None = None, grant: Grant = EVERYBODY
    ) -> "Call":
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else None
        return cls(
            request_id or uuid.uuid4().hex[:16],
            grant.run_id or run_id,
            deadline,
            grant.tenant,
            run_of_key=bool(grant.run_id),
        )

    def named(self, request_id: str, run_id: str) -> "Call":
        """The same call under a message's own names, where it has them."""
        run_id = self.run_id if self.run_of_key else run_id or self.run_id
        named = replace(self, request_id=request_id or self.request_id, run_id=run_id)
        access.identify(named)
        return named

    def within(self, seconds: float | None) -> "Call":
        """The same call with a deadline that is no later than `seconds` from now."""
        ends = [end for end in (self.deadline, time.monotonic() + seconds if seconds is not None else None) if end]
        return replace(self, deadline=min(ends, default=None))

    def remaining(self) -> float | None:
        """Seconds to the deadline, negative once it has passed; None where there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline
