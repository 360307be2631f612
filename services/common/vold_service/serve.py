"""Run both faces on one event loop until a signal: warm up, say ready, serve, drain, stop."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import uvicorn
from fastapi import FastAPI

from vold_service import logs, tracing
from vold_service.connection import Connection
from vold_service.grpc import GrpcServer
from vold_service.http import probe_app
from vold_service.keys import Keys
from vold_service.settings import ServerSettings, split_address
from vold_service.tls import Tls, watch

log = logging.getLogger("vold.serve")

STALLED_READER_SECONDS = 600
"""How long a caller may leave a reply unread with its connection's buffers full."""


class Readiness:
    """Whether the service takes work. The HTTP face reads it; `serve` sets it."""

    def __init__(self) -> None:
        self.ready = False

    def __call__(self) -> bool:
        return self.ready


class _Http(uvicorn.Server):
    """uvicorn on a listener that is bound at once. Raises OSError where it cannot be."""

    def __init__(self, app: FastAPI, address: str, settings: ServerSettings, tls: Tls | None) -> None:
        self.listener = _bind(address)
        host, port = self.listener.getsockname()[:2]
        self.url = f"{'http' if tls is None else 'https'}://{host}:{port}"
        config = uvicorn.Config(
            app,
            http=partial(Connection, idle_seconds=settings.idle_seconds),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            lifespan="off",
        )
        config.load()
        if tls is not None:
            config.ssl = tls.ssl_context()
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `serve` handles signals for both faces


async def serve(
    settings: ServerSettings,
    *,
    name: str,
    app: FastAPI,
    grpc_server: GrpcServer,
    readiness: Readiness,
    keys: Keys,
    tls: Tls | None,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Listen at once (so that probes get an answer), `start` the engine, serve, and on SIGTERM or SIGINT drain.

    SIGHUP reads the file of API keys again.

    Prints one JSON line once ready: {"ready": name, "http": url, "grpc": address, "pid": pid}, and "probes": url where
    --probes is given.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, keys.reload)
    _note_who_may_call(settings, keys, tls)

    http_servers: list[_Http] = []
    http_url, probes_url, certificates = None, None, None
    if settings.http is not None:
        http_servers.append(_Http(app, settings.http, settings, tls))
        http_url = http_servers[-1].url
        if tls is not None and (context := http_servers[-1].config.ssl) is not None:
            certificates = asyncio.create_task(watch(tls, context), name="certificates")
    if settings.probes is not None:
        http_servers.append(_Http(probe_app(readiness), settings.probes, settings, None))
        probes_url = http_servers[-1].url
    http_tasks = [asyncio.create_task(server.serve(sockets=[server.listener])) for server in http_servers]
    grpc_address = None
    if settings.grpc is not None:
        grpc_address = await grpc_server.start(settings.grpc)

    starting = asyncio.create_task(_as_coroutine(start))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    failure = starting.exception() if starting.done() else None
    if not starting.done():
        starting.cancel()
    elif failure is None and not stopping.is_set():
        readiness.ready = True
        await grpc_server.set_ready(True)
        ready = {"ready": name, "http": http_url, "grpc": grpc_address, "pid": os.getpid()}
        if probes_url is not None:
            ready["probes"] = probes_url
        print(json.dumps(ready), flush=True)
        await waiting

    # What has failed to start stops in the same order: a gRPC server that the loop leaves behind is a traceback.
    waiting.cancel()
    grace = 0.0 if failure else settings.drain_seconds
    if failure is None:
        log.info("draining for up to %.0f s", grace)
    readiness.ready = False
    await grpc_server.set_ready(False)
    for server in http_servers:
        server.should_exit = True
    await asyncio.gather(grpc_server.stop(grace), *http_tasks)
    if certificates is not None:
        certificates.cancel()
    await stop()
    if grpc_address is not None and grpc_address.startswith("unix:"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(grpc_address.removeprefix("unix:"))
    if failure is not None:
        raise failure


def _note_who_may_call(settings: ServerSettings, keys: Keys, tls: Tls | None) -> None:
    if keys.open:
        addresses = [address for address in (settings.http, settings.grpc) if address]
        if any(not address.startswith(("127.", "[::1]", "::1", "localhost:", "unix:")) for address in addresses):
            log.warning("anybody who reaches %s may call: --api-keys asks for a key", " and ".join(addresses))
    elif tls is None:
        log.info("API keys travel in plain text: --tls-cert and --tls-key hide them on a network")


async def _as_coroutine(function: Callable[[], Awaitable[None]]) -> None:
    await function()


def _bind(address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), backlog=1024, family=family)
    except OSError as error:
        message = f"cannot listen on {address}: {error.strerror}; choose another port, or 0 for a free one"
        raise OSError(message) from error
    # Connections inherit these. asyncio sets no delay aside only for sockets that name their protocol, which those of a
    # listener do not; with the delay each reply on a kept connection waits 40 ms for the caller's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A caller whose machine or network is gone sends no word of it while it waits for a
    # reply, and one that stops reading holds the reply in memory.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_READER_SECONDS * 1000)
    return listener


def run(main: Callable[[], Awaitable[None]], *, name: str, settings: ServerSettings) -> None:
    """Run a server's `main` under asyncio, with logging and tracing set up. name: of the service in its traces.

    A failure to start ends with its message and status 1.
    """
    logs.setup(settings.log_level, settings.log_format)
    tracing.setup(name)
    try:
        asyncio.run(_as_coroutine(main))  # type: ignore[arg-type]
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        tracing.shutdown()
