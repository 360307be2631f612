"""HTTP connections with limits on idle time and on the size of headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a limit on how long it waits for the rest of a request; uvicorn itself has none.

    The connection is closed if the headers of a request are not complete `idle_seconds` after their first byte (or
    after the connection opened), or if no byte of the body arrives for as long. Between requests uvicorn's keep-alive
    limit holds. While a request is served there is no limit: the kernel closes connections of lost peers (serve.py).
    """

    def __init__(self, *args: Any, idle_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_seconds = idle_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._incomplete = True
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = self._incomplete = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()

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
                self._start_timer()  # not restarted by more header bytes: a slow trickle must not keep it open
        else:
            self._stop_timer()
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._idle_seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # the caller is not idle: this side has stopped reading
            self._start_timer()
        else:
            self.transport.close()
