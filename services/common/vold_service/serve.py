"""Run both faces on one event loop until a signal: warm up, report ready, serve, drain, stop."""

import asyncio
import contextlib
import gc
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
from vold_service.app import make_probe_app
from vold_service.connection import Connection
from vold_service.descriptors import ConnectionCount, connections_of_a_face, raise_limit
from vold_service.grpc import GrpcServer
from vold_service.keys import Keys
from vold_service.processes import Processes
from vold_service.settings import ServerSettings, is_loopback, split_address
from vold_service.tls import Tls, watch_certificate

log = logging.getLogger("vold.serve")

BACKLOG = 1024
"""Connections that the kernel holds until they are accepted."""
ACCEPTED_PER_TURN = 32
"""Connections accepted before the event loop turns to other work."""
STALLED_READER_SECONDS = 600
"""How long a caller may leave a reply unread while the buffers of its connection are full."""


class Readiness:
    """Whether the service accepts requests: it has started, it does not drain, and its engine can work.

    can_work: of the engine, which calls `update` when the answer may have changed.
    """

    def __init__(self, can_work: Callable[[], bool] = lambda: True) -> None:
        self._can_work = can_work
        self._serving = False
        self._changed = asyncio.Event()

    def __call__(self) -> bool:
        return self._serving and self._can_work()

    def set_serving(self, serving: bool) -> None:
        self._serving = serving
        self.update()

    def update(self) -> None:
        self._changed.set()

    async def report_to(self, grpc_server: GrpcServer) -> None:
        """Keep the health service of the gRPC face in step, until cancelled."""
        while True:
            self._changed.clear()
            await grpc_server.set_ready(self())
            await self._changed.wait()


class _HttpServer(uvicorn.Server):
    """uvicorn on a listener that the constructor binds. Raises OSError if the address cannot be bound."""

    def __init__(self, app: FastAPI, address: str, settings: ServerSettings, tls: Tls | None) -> None:
        self.listener = _bind_listener(address)
        host, port = self.listener.getsockname()[:2]
        self.url = f"{'http' if tls is None else 'https'}://{host}:{port}"
        config = uvicorn.Config(
            app,
            http=partial(  # type: ignore[arg-type]
                Connection,
                idle_seconds=settings.idle_seconds,
                connections=ConnectionCount(connections_of_a_face()),
            ),
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=ACCEPTED_PER_TURN,  # asyncio takes this number both for the kernel and for its own turn
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            lifespan="off",
        )
        config.load()
        if tls is not None:
            config.ssl = tls.ssl_context()
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listener.listen(BACKLOG)

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
    """Listen, `start` the engine, serve until SIGTERM or SIGINT, and drain. SIGHUP reloads the file of API keys.

    The servers listen before the engine starts, so that probes get an answer.

    Prints one JSON line when ready: {"ready": name, "http": url, "grpc": address, "pid": pid}, and "probes": url if
    --probes is given.
    """
    stopping = _stop_on_signal(keys)
    _log_open_access(settings, keys, tls)

    http_servers = _bind_http_servers(settings, app, readiness, tls)
    certificates = None
    if tls is not None and "http" in http_servers and (context := http_servers["http"].config.ssl) is not None:
        certificates = asyncio.create_task(watch_certificate(tls, context), name="certificates")
    http_tasks = [asyncio.create_task(server.serve(sockets=[server.listener])) for server in http_servers.values()]
    grpc_address = None
    if settings.grpc is not None:
        grpc_address = await grpc_server.start(settings.grpc)

    health = asyncio.create_task(readiness.report_to(grpc_server), name="health")
    starting = asyncio.create_task(_as_coroutine(start))
    stop_signal = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, stop_signal}, return_when=asyncio.FIRST_COMPLETED)
    failure = starting.exception() if starting.done() else None
    if not starting.done():
        starting.cancel()
    elif failure is None and not stopping.is_set():
        gc.collect()
        gc.freeze()  # or each full collection would visit all that is loaded, and stop the event loop meanwhile
        readiness.set_serving(True)
        await grpc_server.set_ready(readiness())
        urls = {face: server.url for face, server in http_servers.items()}
        ready = {"ready": name, "http": None, "grpc": grpc_address, "pid": os.getpid(), **urls}
        print(json.dumps(ready), flush=True)
        await stop_signal

    # After a failed start the servers stop in the same order: otherwise the gRPC server ends with a traceback.
    stop_signal.cancel()
    grace = 0.0 if failure else settings.drain_seconds
    if failure is None:
        log.info("draining for up to %.0f s", grace)
    readiness.set_serving(False)
    await grpc_server.set_ready(False)
    for server in http_servers.values():
        server.should_exit = True
    await asyncio.gather(grpc_server.stop(grace), *http_tasks)
    for task in (health, certificates):
        if task is not None:
            task.cancel()
    await stop()
    if grpc_address is not None and grpc_address.startswith("unix:"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(grpc_address.removeprefix("unix:"))
    if failure is not None:
        raise failure


def _stop_on_signal(keys: Keys) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. SIGHUP reloads `keys`."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, keys.reload)
    return stopping


def _bind_http_servers(
    settings: ServerSettings, app: FastAPI, readiness: Readiness, tls: Tls | None
) -> dict[str, _HttpServer]:
    """The bound HTTP servers by name: "http" for the HTTP face, "probes" for the probes, each if it has an address."""
    servers = {}
    if settings.http is not None:
        servers["http"] = _HttpServer(app, settings.http, settings, tls)
    if settings.probes is not None:
        servers["probes"] = _HttpServer(make_probe_app(readiness), settings.probes, settings, None)
    return servers


def _log_open_access(settings: ServerSettings, keys: Keys, tls: Tls | None) -> None:
    """Log who may call if the service has no keys, and that keys are not encrypted if it has no TLS."""
    if keys.open:
        addresses = [address for address in (settings.http, settings.grpc) if address]
        if not all(map(is_loopback, addresses)):
            log.warning("anybody who reaches %s may call: --api-keys asks for a key", " and ".join(addresses))
    elif tls is None:
        log.info("API keys travel in plain text: --tls-cert and --tls-key hide them on a network")


async def _as_coroutine(function: Callable[[], Awaitable[None]]) -> None:
    await function()


def _bind_listener(address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), backlog=BACKLOG, family=family)
    except OSError as error:
        message = f"cannot listen on {address}: {error.strerror}; choose another port, or 0 for a free one"
        raise OSError(message) from error
    # Connections inherit these options. asyncio sets TCP_NODELAY only on sockets that name their protocol, and accepted
    # sockets do not. Without it each reply on a reused connection waits 40 ms for the caller's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A caller whose machine or network is lost closes no connection, and a caller that stops reading keeps the reply in
    # this process's memory.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_READER_SECONDS * 1000)
    return listener


def run(main: Callable[[Processes], Awaitable[None]], *, name: str, settings: ServerSettings) -> None:
    """Set up logging, tracing and limits, and run a server's `main` under asyncio. name: of the service in traces.
    main: takes the processes for work that must not run on the event loop; they are stopped after it.

    If the start fails, the process exits with the error message and status 1.
    """
    logs.setup(settings.log_level, settings.log_format)
    processes = Processes.fork()  # before tracing starts a thread
    tracing.setup(name)
    raise_limit()

    async def serve_and_stop() -> None:
        try:
            await main(processes)
        finally:
            await processes.stop()

    try:
        asyncio.run(serve_and_stop())
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        tracing.shutdown()
