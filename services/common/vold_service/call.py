"""What an engine knows of a call, whichever face it came through."""

import time
import uuid
from dataclasses import dataclass, field, replace

from vold_service import access, tracing
from vold_service.errors import check_name
from vold_service.keys import OPEN_GRANT, Grant
from vold_service.quota import Place, Quotas
from vold_service.tenants import OPEN_TENANT, Tenant


@dataclass(frozen=True, slots=True)
class Call:
    """request_id: the caller's, or a new one. deadline: on time.monotonic()'s clock; None for no deadline.

    tenant: the caller's. run_id: the caller's training run, for accounting. run_id_from_key: True if the API key sets
    the run id; a message then cannot set another. span: the span of the request; None if it is not traced. place: what
    the request occupies of its tenant's limits; None for a call that occupies nothing.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    run_id: str = ""
    deadline: float | None = None
    tenant: Tenant = OPEN_TENANT
    run_id_from_key: bool = False
    span: tracing.Span = field(default_factory=access.current_span, repr=False, compare=False)
    place: Place | None = field(default=None, repr=False, compare=False)

    @classmethod
    def start(
        cls, request_id: str = "", run_id: str = "", timeout_seconds: float | None = None, grant: Grant = OPEN_GRANT
    ) -> "Call":
        """Raises INVALID_ARGUMENT for an id that is too long."""
        check_name("request_id", request_id)
        check_name("run_id", run_id)
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else None
        return cls(
            request_id or uuid.uuid4().hex[:16],
            grant.run_id or run_id,
            deadline,
            grant.tenant,
            run_id_from_key=bool(grant.run_id),
        )

    def with_ids(self, request_id: str, run_id: str) -> "Call":
        """The same call with the ids of a message, where the message has them. Raises INVALID_ARGUMENT for an id that
        is too long.
        """
        check_name("request_id", request_id)
        check_name("run_id", run_id)
        run_id = self.run_id if self.run_id_from_key else run_id or self.run_id
        call = replace(self, request_id=request_id or self.request_id, run_id=run_id)
        access.set_caller(call)
        return call

    def with_place(self, quotas: Quotas, size: int) -> "Call":
        """The same call with a place, which its owner must close, and which holds `size` bytes: of the request's body.

        Raises RESOURCE_EXHAUSTED if the tenant is over a limit.
        """
        place = quotas.open_place(self.tenant, caller=self.request_id, size=size, remaining=self.remaining())
        try:
            place.hold(size)
        except BaseException:
            place.close()
            raise
        return replace(self, place=place)

    def with_timeout(self, seconds: float | None) -> "Call":
        """The same call with a deadline at most `seconds` from now."""
        deadlines = [
            deadline
            for deadline in (self.deadline, time.monotonic() + seconds if seconds is not None else None)
            if deadline
        ]
        return replace(self, deadline=min(deadlines, default=None))

    def remaining(self) -> float | None:
        """Seconds to the deadline, negative after it; None for no deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline
