"""The access record of a request, for both faces: one log line when the request ends, one span, and the counters of
tenants and of refusals.

A face opens the record with `record_request`. The code that serves the request finds the record in a context variable
and adds to it (`set_caller`, `add_figures`, `record_error`). The record holds names, codes and numbers only: no prompt,
completion, API key or error text.
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
from vold_service.errors import MAX_NAME, Code, ServiceError

SLOW_SECONDS = 30.0
"""A failed request, or a request that takes longer than this, is logged at level info; every other one at debug."""

REJECTED = Counter("vold_rejected_requests", "requests refused, by face and reason", ["face", "reason"])
TENANT_REQUESTS = Counter("vold_tenant_requests", "requests by tenant and outcome", ["tenant", "code"])

log = logging.getLogger("vold.access")


class _Tenant(Protocol):
    @property
    def name(self) -> str: ...


class _Call(Protocol):
    """The part of vold_service.call.Call that this module reads."""

    @property
    def request_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def tenant(self) -> _Tenant: ...


@dataclass(slots=True)
class AccessRecord:
    """method: the RPC's name, or the HTTP verb and path. quiet: a probe or a poll, logged only if it fails.
    error_field: the request field at fault. figures: numbers of tokens and the like.
    """

    face: str
    method: str
    request_id: str
    quiet: bool = False
    run_id: str = ""
    tenant: str = ""
    code: str = "OK"
    reason: str = ""
    error_field: str = ""
    figures: dict[str, int | float | str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    span: tracing.Span = None

    def entry(self) -> dict[str, Any]:
        """The fields for the log line and the span, without empty ones."""
        fields = {
            "request_id": self.request_id,
            "run_id": self.run_id,
            "tenant": self.tenant,
            "face": self.face,
            "method": self.method,
            "code": self.code,
            "reason": self.reason,
            "field": self.error_field,
            "seconds": round(time.monotonic() - self.started, 6),
            **self.figures,
        }
        return {key: value for key, value in fields.items() if value != ""}


_current: ContextVar[AccessRecord | None] = ContextVar("vold_access", default=None)


def header_value(request_id: str) -> str:
    """The request id with every character replaced that an HTTP header or gRPC metadata cannot carry."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in request_id[:MAX_NAME])


def current_record() -> AccessRecord | None:
    """The record of the request that this task serves."""
    return _current.get()


def current_span() -> tracing.Span:
    record = _current.get()
    return record.span if record is not None else None


def set_caller(call: _Call) -> None:
    """Copy the call's request id, run id and tenant into the record of the request."""
    if record := _current.get():
        record.request_id, record.run_id, record.tenant = call.request_id, call.run_id, call.tenant.name


def add_figures(**figures: int | float | str) -> None:
    """Add figures, such as numbers of tokens, to the record."""
    if record := _current.get():
        record.figures.update(figures)


def record_error(error: ServiceError) -> None:
    """Record that the request ends with this error."""
    if record := _current.get():
        _set_error(record, error)


def count_refusal(error: ServiceError) -> None:
    """Count the refusal of one item of a stream, whose own request goes on."""
    if (record := _current.get()) and error.reason:
        REJECTED.labels(record.face, error.reason).inc()
        name = f"refused_{error.reason}"
        record.figures[name] = int(record.figures.get(name, 0)) + 1


def _set_error(record: AccessRecord, error: ServiceError) -> None:
    record.code, record.reason, record.error_field = Code.Name(error.code), error.reason, error.field[:MAX_NAME]


@contextmanager
def record_request(
    face: str, method: str, *, request_id: str = "", quiet: bool = False, headers: Mapping[str, str] | None = None
) -> Iterator[AccessRecord]:
    """A record for the request that this task, and the tasks that it starts, serve inside the block.

    headers: the request's headers, which may hold a traceparent.
    """
    record = AccessRecord(face, method[:MAX_NAME], request_id[:MAX_NAME] or uuid.uuid4().hex[:16], quiet)
    if not quiet:
        record.span = tracing.start_span(method, headers or {})
    # Never reset: the task serves no other request, and a generator may be closed from another context.
    _current.set(record)
    try:
        yield record
    except ServiceError as error:
        _set_error(record, error)
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


def _close(record: AccessRecord) -> None:
    entry = record.entry()
    tracing.end_span(record.span, record.code, {key: value for key, value in entry.items() if key != "code"})
    if record.reason:
        REJECTED.labels(record.face, record.reason).inc()
    if record.tenant and not record.quiet:
        TENANT_REQUESTS.labels(record.tenant, record.code).inc()
    succeeded = record.code in ("OK", "CANCELLED")  # a client that has read enough of a stream cancels it
    if succeeded and record.quiet:
        return
    level = logging.DEBUG if succeeded and entry["seconds"] <= SLOW_SECONDS else logging.INFO
    if log.isEnabledFor(level):
        if trace_id := tracing.trace_id(record.span):
            entry["trace_id"] = trace_id
        log.log(level, "request", extra={"fields": entry})
