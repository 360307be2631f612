"""What an engine knows of a call, whichever face it came through."""

import time
import uuid
from dataclasses import dataclass, field

from vold_service import access, tracing
from vold_service.tenants import OPEN, Tenant


@dataclass(frozen=True, slots=True)
class Call:
    """request_id: the caller's, or one made here. deadline: on time.monotonic()'s clock; None for none.

    tenant: who asks. run_id: the caller's training run, for accounting. span: of the request, where it is traced.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    run_id: str = ""
    deadline: float | None = None
    tenant: Tenant = OPEN
    span: tracing.Span = field(default_factory=access.current_span, repr=False, compare=False)

    @classmethod
    def start(
        cls, request_id: str = "", run_id: str = "", timeout_seconds: float | None = None, tenant: Tenant = OPEN
    ) -> "Call":
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else None
        return cls(request_id or uuid.uuid4().hex[:16], run_id, deadline, tenant)

    def remaining(self) -> float | None:
        """Seconds to the deadline, negative once it has passed; None where there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline
