"""The service's client of the fork server: it starts the fork server and tells it to start and kill workers."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from vold_verifier.sandbox.confine import closed_environment

START_SECONDS = 120.0


def environment_without_secrets() -> dict[str, str]:
    """Return the service's environment without its own settings, which may be keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VOLD_")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkServerOptions:
    """What a fork server is told. pool: "main" or "sandbox". plugins, enable: of `registry.load`. cpu_seconds: of one
    item. memory_bytes: address space of one worker.
    """

    pool: str
    plugins: tuple[str, ...]
    enable: tuple[str, ...]
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class ForkServerProcess:
    """A fork server that was launched and may not be ready. control: the service's end of its socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    @classmethod
    def launch(cls, options: ForkServerOptions) -> "ForkServerProcess":
        """Call it in the main thread: the kernel ends the process with the thread that started it."""
        local, remote = socket.socketpair()
        arguments = {**asdict(options), "parent": os.getpid(), "fd": remote.fileno()}
        environment = closed_environment() if options.pool == "sandbox" else environment_without_secrets()
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with remote:
            process = subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-P", "-m", "vold_verifier.engine.forkserver", json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=(remote.fileno(),),
                env=environment,
                start_new_session=True,  # the service handles a Ctrl-C at the terminal
            )
        return cls(process, local)


class ForkServerClient:
    """One fork server process. The callbacks run on the event loop, and never after `stop`.

    layers: the layers that confine its workers; set once it has started.
    on_started(number), on_exited(number, waitstatus): called when a worker has started or ended.
    on_lost(): called if the fork server ends by itself after it was ready.
    """

    def __init__(
        self,
        launched: ForkServerProcess,
        *,
        on_started: Callable[[int], None],
        on_exited: Callable[[int, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.on_started = on_started
        self.on_exited = on_exited
        self.on_lost = on_lost
        self.layers: tuple[str, ...] = ()
        self._process = launched.process
        self._control: socket.socket | None = launched.control
        self._buffer = b""
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Wait until the process has loaded every verifier.

        Raises OSError if a verifier cannot be loaded, or has not been after START_SECONDS.
        """
        assert self._control is not None
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(self._control.fileno(), self._on_readable)
        try:
            await asyncio.wait_for(self._ready, START_SECONDS)
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                message = f"the workers cannot start: their fork server has not loaded them in {START_SECONDS:.0f} s"
                raise OSError(message) from None
            raise

    async def stop(self) -> None:
        """End the process; the kernel then ends its workers."""
        self._close_control()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def kill_all(self) -> None:
        """Kill the process and, by the kernel, its workers; `on_lost` follows."""
        self._process.kill()

    def spawn(self, number: int) -> socket.socket:
        """Start a worker; return the service's end of its pipe, in non-blocking mode."""
        local, remote = socket.socketpair()
        local.setblocking(False)
        with remote:
            self._send({"spawn": number}, (remote.fileno(),))
        return local

    def kill(self, number: int) -> None:
        self._send({"kill": number})

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError):  # the end of file is handled in `_on_readable`
                socket.send_fds(self._control, [json.dumps(message).encode() + b"\n"], descriptors)

    def _close_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _on_readable(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._on_end_of_file()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))

    def _on_end_of_file(self) -> None:
        self._close_control()
        assert self._ready is not None
        if self._ready.done():
            self.on_lost()
        else:
            self._ready.set_exception(OSError("the workers cannot start: their fork server ended; its output says why"))

    def _handle(self, message: dict[str, Any]) -> None:
        assert self._ready is not None
        if "started" in message:
            self.on_started(message["started"])
        elif "exited" in message:
            self.on_exited(message["exited"], message["status"])
        elif "ready" in message:
            self.layers = tuple(message["layers"])
            self._ready.set_result(None)
        elif not self._ready.done():
            self._ready.set_exception(OSError(f"the workers cannot start: {message['error']}"))
