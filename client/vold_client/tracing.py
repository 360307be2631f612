"""The W3C trace context of the caller's current span, to send with a request.

Without opentelemetry, or without a current span, there is nothing to send.
"""

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:

    def headers() -> dict[str, str]:
        """traceparent and tracestate, for HTTP headers or gRPC metadata; empty without a current span."""
        return {}

else:
    _propagator = TraceContextTextMapPropagator()

    def headers() -> dict[str, str]:
        """traceparent and tracestate, for HTTP headers or gRPC metadata; empty without a current span."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier
