"""The client loop: the event loop, in its own thread, that runs all gRPC calls of a process's clients.

gRPC's asyncio layer has one queue of events for the process. Every loop that has made a call takes events from that
queue, including events of other loops (https://github.com/grpc/grpc/issues/25364). This fails in two ways. The last
event of a cancelled call arrives after its caller has ended; if the caller's loop is closed by then, another loop fails
to hand the event on. And if several loops wait for events, one may take the event of another, which then waits for
ever. Therefore one loop makes all calls, whichever loop or thread they come from. It is closed after the last call,
when the interpreter exits.
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
"""The time limit for calls in flight when the interpreter exits."""

open_iterators: set[AsyncGenerator[Any, None]] = set()
"""Iterators on the client loop that sync callers have started and not finished."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def client_loop() -> asyncio.AbstractEventLoop:
    """The client loop, started by the first call of this function. It runs until the interpreter exits."""
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _loop.set_exception_handler(_handle_exception)
            _thread = threading.Thread(target=_run, args=(_loop,), name="vold-client", daemon=True)
            _thread.start()
        return _loop


async def run_on_client_loop(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, run on the client loop. If the caller is cancelled, `work` is cancelled too."""
    loop = client_loop()
    if asyncio.get_running_loop() is loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    # Keeps gRPC's queue for as long as the loop runs, so that the queue is not created again for each client.
    loop.call_soon(grpc.aio.init_grpc_aio)  # type: ignore[attr-defined]  # not in the stubs
    loop.run_forever()


def _handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore gRPC's exceptions about events of the process's other loops: no call of this client runs there."""
    if "PollerCompletionQueue._handle_events" in repr(context.get("handle")):
        error = context.get("exception")
        if isinstance(error, BlockingIOError) or (isinstance(error, RuntimeError) and "loop is closed" in str(error)):
            return
    loop.default_exception_handler(context)


async def _end_calls() -> None:
    """End the calls in flight, then shut down gRPC's use of the loop."""
    # Only the outermost of nested iterators is closed, and it closes the inner ones. asyncio's own shutdown_asyncgens
    # closes all of them at once, and they fail in each other's way.
    for iterator in list(open_iterators):
        with contextlib.suppress(Exception):
            await iterator.aclose()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CLOSE_SECONDS)
    grpc.aio.shutdown_grpc_aio()  # type: ignore[attr-defined]


@atexit.register
def _close() -> None:
    """End the calls, then the thread, then close the loop. A callback that blocks the loop does not block the exit."""
    if _loop is None or _thread is None or not _thread.is_alive():
        return
    with contextlib.suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(_end_calls(), _loop).result(2 * CLOSE_SECONDS)
    _loop.call_soon_threadsafe(_loop.stop)
    _thread.join(CLOSE_SECONDS)
    if not _thread.is_alive():
        _loop.close()
