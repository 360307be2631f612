"""What is kept of each request while it is served, whichever face it came by: one line in the log at its end, one
span, and the counters of tenants and of refusals.

A face opens a record with `recording`; what serves the request adds to it (`identify`, `note`, `fail`) without being
handed it. No prompt, completion, key or text of an error gets in, only names, codes and numbers.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import Counter

from vold_service import tracing
from vold_service.errors import Code, ServiceError

SLOW_SECONDS = 30.0
"""A request that takes longer has its line at level info, as one that fails has; the others have it at debug."""

REJECTED = Counter("vold_rejected_requests", "requests refused, by face and reason", ["face", "reason"])
TENANT_REQUESTS = Counter("vold_tenant_requests", "requests by tenant and outcome", ["tenant", "code"])

log = logging.getLogger("vold.access")


class _Tenant(Protocol):
    @property
    def name(self) -> str: ...


class _Call(Protocol):
    """As vold_service.call.Call has them."""

    @property
    def request_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def tenant(self) -> _Tenant: ...


@dataclass(slots=True)
class Record:
    """method: the RPC's name, or the HTTP verb and path. quiet: a probe or a poll, logged only where it fails.
    at: the field at fault. notes: tokens and other figures.
    """

    face: str
    method: str
    request_id: str
    quiet: bool = False
    run_id: str = ""
    tenant: str = ""
    code: str = "OK"
    reason: str = ""
    at: str = ""
    notes: dict[str, int | float | str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    span: tracing.Span = None

    def entry(self) -> dict[str, Any]:
        """For the log and the span: without what is empty."""
        known = {
            "request_id": self.request_id,
            "run_id": self.run_id,
            "tenant": self.tenant,
            "face": self.face,
            "method": self.method,
            "code": self.code,
            "reason": self.reason,
            "field": self.at,
            "seconds": round(time.monotonic() - self.started, 6),
            **self.notes,
        }
        return {key: value for key, value in known.items() if value != ""}


_current: ContextVar[Record | None] = ContextVar("vold_access", default=None)


def printable(request_id: str) -> str:
    """As a header or gRPC's metadata can carry it."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in request_id[:256])


def current() -> Record | None:
    """The record of the request that this task serves."""
    return _current.get()


def current_span() -> tracing.Span:
    record = _current.get()
    return record.span if record is not None else None


def identify(call: _Call) -> None:
    """Put the call's own names in the record of its request."""
    if record := _current.get():
        record.request_id, record.run_id, record.tenant = call.request_id, call.run_id, call.tenant.name


def note(**figures: int | float | str) -> None:
    """Add figures, such as tokens, to the record."""
    if record := _current.get():
        record.notes.update(figures)


def fail(error: ServiceError) -> None:
    """The request ends with this error."""
    if record := _current.get():
        _fail(record, error)


def _fail(record: Record, error: ServiceError) -> None:
    record.code, record.reason, record.at = Code.Name(error.code), error.reason, error.field


@contextmanager
def recording(
    face: str, method: str, *, request_id: str = "", quiet: bool = False, headers: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """A record for the request served in this block, by this task and those it starts. headers: for traceparent."""
    record = Record(face, method, request_id or uuid.uuid4().hex[:16], quiet)
    if not quiet:
        record.span = tracing.begin(method, headers or {})
    # Never reset: the task that serves a request serves no other, and a generator may be closed from another context.
    _current.set(record)
    try:
        yield record
    except ServiceError as error:
        _fail(record, error)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        if record.code == "OK":
            record.code = "CANCELLED"
        raise
    except Exception:
        if record.code == "OK":
            record.code = "INTERNAL"
        raise
    finally:
        _close(record)


def _close(record: Record) -> None:
    entry = record.entry()
    tracing.end(record.span, record.code, {key: value for key, value in entry.items() if key != "code"})
    if record.reason:
        REJECTED.labels(record.face, record.reason).inc()
    if record.tenant and not record.quiet:
        TENANT_REQUESTS.labels(record.tenant, record.code).inc()
    well = record.code in ("OK", "CANCELLED")  # a client ends a stream that it needs no more by cancelling it
    if well and record.quiet:
        return
    level = logging.DEBUG if well and entry["seconds"] <= SLOW_SECONDS else logging.INFO
    if log.isEnabledFor(level):
        if found := tracing.trace_id(record.span):
            entry["trace_id"] = found
        log.log(level, "request", extra={"fields": entry})
