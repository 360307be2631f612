"""HTTP connections with limits on their number, on idle time, on the size of headers, and on how slow a body may be."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vold_service.descriptors import ConnectionCount

MAX_HEADER_BYTES = 64 * 1024
MIN_BODY_BYTES_PER_SECOND = 4096


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a limit on how long it waits for the rest of a request; uvicorn itself has none.

    The connection is closed if the headers of a request are not complete `idle_seconds` after their first byte (or
    after the connection opened), if no byte of the body arrives for as long, or if the body is that much later than at
    `MIN_BODY_BYTES_PER_SECOND`. Between requests uvicorn's keep-alive limit holds. While a request is served there is
    no limit: the kernel closes connections of lost peers (serve.py). A connection over the limits of `connections` is
    closed when it opens.
    """

    def __init__(self, *args: Any, idle_seconds: float, connections: ConnectionCount, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._count = connections
        self._counted_as: str | None = None
        self._body_began = 0.0
        self._body_bytes = 0
        self._idle_seconds = idle_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._incomplete = True
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("peername") or ("",)
        self._counted_as = self._count.admit(peer[0])
        if self._counted_as is None:
            transport.abort()
        else:
            self._start_timer(self._idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._counted_as is not None:
            self._count.release(self._counted_as)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = self._incomplete = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._begin_body()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._incomplete = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or not self._incomplete:
            self._stop_timer()
        elif self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.send_400_response(f"The headers are over {MAX_HEADER_BYTES} bytes.")
            elif self._timer is None:
                self._start_timer(self._idle_seconds)  # more header bytes do not restart it: no slow trickle
        else:
            self._stop_timer()
            self._start_timer(min(self._idle_seconds, self._body_seconds()))

    def _begin_body(self) -> None:
        self._body_began, self._body_bytes = self.loop.time(), 0

    def _body_seconds(self) -> float:
        """Seconds that the body so far leaves before it is too slow."""
        allowed = self._idle_seconds + self._body_bytes / MIN_BODY_BYTES_PER_SECOND
        return max(0.0, self._body_began + allowed - self.loop.time())

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # the caller is not idle: this side has stopped reading
            self._begin_body()
            self._start_timer(self._idle_seconds)
        else:
            self.transport.close()
