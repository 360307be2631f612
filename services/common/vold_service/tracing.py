"""OpenTelemetry spans, if the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT is set.

Otherwise every function here does nothing and every span is None. The SDK reads its own environment variables (sampler,
headers, resource attributes), so there is nothing else to configure.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vold_proto.distribution import require_extra

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # the extra `otel` is not installed
    trace = None  # type: ignore[assignment]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger("vold.tracing")

Span = Any
"""An opentelemetry Span, or None if nothing is traced."""

_provider: Any = None
_tracer: Any = None


def setup(service: str) -> None:
    """Export spans under this service name if the environment names a collector."""
    global _provider, _tracer
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        with require_extra("otel", "tracing"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("%s is set, but nothing is traced: %s", ENDPOINTS[0], error)
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    _provider = TracerProvider(resource=Resource.create({"service.name": name}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("vold")


def shutdown() -> None:
    """Export the remaining spans. Blocks for a few seconds at most."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
        _provider = _tracer = None


def start_span(name: str, headers: Mapping[str, str]) -> Span:
    """A server span for one request; a child of the caller's span if `headers` has a traceparent (in lower case)."""
    if _tracer is None:
        return None
    parent = TraceContextTextMapPropagator().extract(headers)
    return _tracer.start_span(name, context=parent, kind=trace.SpanKind.SERVER)


def end_span(span: Span, code: str, attributes: Mapping[str, Any]) -> None:
    """End the span of a request. code: OK, or the name of the error code."""
    if span is None:
        return
    span.set_attributes({f"vold.{key}": value for key, value in attributes.items()})
    if code not in ("OK", "CANCELLED"):
        span.set_status(trace.Status(trace.StatusCode.ERROR, code))
    span.end()


def trace_id(span: Span) -> str:
    """32 hexadecimal digits, or "" if nothing is traced."""
    return f"{span.get_span_context().trace_id:032x}" if span is not None else ""


@contextmanager
def batch_span(name: str, callers: Iterable[Span]) -> Iterator[dict[str, Any]]:
    """A span for a batch that serves several requests at once. The block fills the dict with the span's attributes.

    The span cannot be the child of every request's span. It starts a new trace with a link to each of them, and each of
    them gets a link to it.
    """
    attributes: dict[str, Any] = {}
    if _tracer is None:
        yield attributes
        return
    spans = {id(span): span for span in callers if span is not None}.values()
    links = [trace.Link(span.get_span_context()) for span in spans]
    with _tracer.start_as_current_span(name, links=links) as batch:
        for span in spans:
            if span.is_recording():  # False if the caller has disconnected
                span.add_link(batch.get_span_context())
        try:
            yield attributes
        finally:
            batch.set_attributes({f"vold.{key}": value for key, value in attributes.items()})
