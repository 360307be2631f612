"""The W3C trace context of the caller's own span, to send along with a request.

Needs nothing installed: without opentelemetry, or where no span is current, there is nothing to send.
"""

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:

    def headers() -> dict[str, str]:
        """traceparent and tracestate, as headers or as gRPC metadata; empty where no span is current."""
        return {}

else:
    _propagator = TraceContextTextMapPropagator()

    def headers() -> dict[str, str]:
        """traceparent and tracestate, as headers or as gRPC metadata; empty where no span is current."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier
