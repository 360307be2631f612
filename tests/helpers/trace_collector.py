"""A small OpenTelemetry collector: receives OTLP over HTTP and keeps the spans."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """Ids are bytes. links: (trace id, span id) of each link."""

    service: str
    name: str
    trace_id: bytes
    span_id: bytes
    parent: bytes
    links: tuple[tuple[bytes, bytes], ...]
    attributes: dict[str, object]
    failed: bool


@dataclass
class Collector:
    endpoint: str
    spans: list[Span] = field(default_factory=list)

    def named(self, name: str, service: str = "") -> list[Span]:
        return [span for span in self.spans if span.name == name and service in ("", span.service)]

    def add(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            service = values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            str(service),
                            span.name,
                            span.trace_id,
                            span.span_id,
                            span.parent_span_id,
                            tuple((link.trace_id, link.span_id) for link in span.links),
                            values(span.attributes),
                            span.status.code == span.status.STATUS_CODE_ERROR,
                        )
                    )


def values(attributes) -> dict[str, object]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens on a free port of the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.add(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
