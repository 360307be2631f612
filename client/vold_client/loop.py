"""The event loop on which all gRPC calls of a process's clients run, on a thread of its own.

gRPC's asyncio layer has one queue of events for the process, and every loop that ever made a call takes events off it,
those of other loops too (https://github.com/grpc/grpc/issues/25364). The last event of a cancelled call comes after its
caller has gone: where that caller's loop is closed by then, another loop fails at handing the event on; and where
several loops wait for events, one may take what woke up another, which then waits for good. So one loop makes all
calls, whichever loop or thread asks for them, and is closed after the last of them, when the interpreter ends.
"""

import asyncio
import atexit
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""How long the calls that are under way when the interpreter ends may take to end."""

streams: set[AsyncGenerator[Any, None]] = set()
"""Iterators on the loop that callers without a loop have begun and not ended."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def client_loop() -> asyncio.AbstractEventLoop:
    """The loop; it runs as long as the process does."""
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _loop.set_exception_handler(_report)
            _thread = threading.Thread(target=_run, args=(_loop,), name="vold-client", daemon=True)
            _thread.start()
        return _loop


async def on_client_loop(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, or raises, run on the client loop; cancelled where the caller is cancelled."""
    loop = client_loop()
    if asyncio.get_running_loop() is loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    # Held as long as the loop runs, so that gRPC's queue outlives every client and is not made anew for the next.
    loop.call_soon(grpc.aio.init_grpc_aio)  # type: ignore[attr-defined]  # not in the stubs
    loop.run_forever()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leave out what gRPC raises over the events of loops that the process has beside this one: none of them is of a
    call of ours.
    """
    if "PollerCompletionQueue._handle_events" in repr(context.get("handle")):
        error = context.get("exception")
        if isinstance(error, BlockingIOError) or (isinstance(error, RuntimeError) and "loop is closed" in str(error)):
            return
    loop.default_exception_handler(context)


async def _end() -> None:
    """End what is under way, then gRPC's part in the loop."""
    # Of iterators one in another, the outer one alone is closed, and closes the others: all at once, as asyncio's own
    # shutdown_asyncgens does it, they would get in each other's way.
    for items in list(streams):
        with contextlib.suppress(Exception):
            await items.aclose()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CLOSE_SECONDS)
    grpc.aio.shutdown_grpc_aio()  # type: ignore[attr-defined]


@atexit.register
def _close() -> None:
    """Calls end before gRPC leaves the loop, and the thread before the loop is closed. A callback that blocks the loop
    holds up nobody's exit.
    """
    if _loop is None or _thread is None or not _thread.is_alive():
        return
    with contextlib.suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(_end(), _loop).result(2 * CLOSE_SECONDS)
    _loop.call_soon_threadsafe(_loop.stop)
    _thread.join(CLOSE_SECONDS)
    if not _thread.is_alive():
        _loop.close()
