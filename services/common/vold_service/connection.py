"""HTTP connections that cannot be held open by silence, nor filled with headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which by itself waits for ever for the rest of a request.

    It is closed where the headers of a request are not complete `idle_seconds` after their first byte (or after the
    connection was made), and where its body stops for as long. Between requests uvicorn's keep-alive limit holds, and
    while a request is served there is no limit: the kernel looks after peers that have gone (serve.py).
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
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
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
            self._disarm()
        elif self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.send_400_response(f"The headers are over {MAX_HEADER_BYTES} bytes.")
            elif self._timer is None:
                self._arm()  # and not again with more data: a byte now and then must not keep it open
        else:
            self._disarm()
            self._arm()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self._idle_seconds, self._silent)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _silent(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # the caller is not silent: this end is not listening
            self._arm()
        else:
            self.transport.close()
