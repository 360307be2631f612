"""The event loop of a process's clients, on a thread of its own.

gRPC's asyncio layer has one queue of events for the process: with several loops, one that is closed while its calls
are not quite over leaves events that nobody can take.
"""

import asyncio
import threading

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def client_loop() -> asyncio.AbstractEventLoop:
    """The loop; it runs as long as the process does."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="vold-client", daemon=True).start()
        return _loop
