"""Coroutines of the clients: from code that has no event loop, and several at the same time."""

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from vold_client.loop import client_loop

T = TypeVar("T")


async def run_until_first(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at the same time until one of them ends, and cancel the others. Raises the error of what ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
