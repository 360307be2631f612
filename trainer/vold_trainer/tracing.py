"""Spans for the steps of a run and their parts, if OpenTelemetry is installed (the extra `otel`) and
OTEL_EXPORTER_OTLP_ENDPOINT names a collector. The services join the trace: vold_client sends its context.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vold_proto.distribution import require_extra

from vold_trainer.errors import UsageError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: Any = None


@contextmanager
def exporting(run: str) -> Iterator[None]:
    """Export the spans of this block. run: the name of the training run, an attribute of each span."""
    global _tracer
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    with require_extra("otel", ENDPOINTS[0], UsageError, otherwise="unset it"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    name = os.environ.get("OTEL_SERVICE_NAME") or "vold-trainer"
    provider = TracerProvider(resource=Resource.create({"service.name": name, "vold.run_id": run}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("vold")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


@contextmanager
def span(name: str, *, current: bool = True, **attributes: int | float | str) -> Iterator[None]:
    """A span around this block. current: spans that start inside, here or in a service, become its children."""
    if _tracer is None:
        yield
        return
    prefixed = {f"vold.{key}": value for key, value in attributes.items()}
    if current:
        with _tracer.start_as_current_span(name, attributes=prefixed):
            yield
        return
    detached = _tracer.start_span(name, attributes=prefixed)
    try:
        yield
    finally:
        detached.end()
