"""The clients' coroutines, for callers that have no event loop."""

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, TypeVar

from vold_client.loop import client_loop

T = TypeVar("T")


class ClientTasks:
    """Coroutines on the event loop that all clients of the process share."""

    def __init__(self) -> None:
        self.loop = client_loop()
        self._open: set[concurrent.futures.Future[Any]] = set()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin `work`, and go on."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what `work` returns, or raises."""
        return self.submit(work).result()

    def close(self) -> None:
        """Cancel what has not ended."""
        for future in list(self._open):
            future.cancel()
