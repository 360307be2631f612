"""Run coroutines of the clients from code that has no event loop."""

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, TypeVar

from vold_client.loop import client_loop

T = TypeVar("T")


class ClientTasks:
    """Coroutines that run on the event loop which all clients of the process share."""

    def __init__(self) -> None:
        self.loop = client_loop()
        self._open: set[concurrent.futures.Future[Any]] = set()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `work` and return its future."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end. Returns its result, or raises its error."""
        return self.submit(work).result()

    def close(self) -> None:
        """Cancel the coroutines that have not ended."""
        for future in list(self._open):
            future.cancel()
