"""The server's end of the fork server: start it, ask for workers, hear of their ends."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from vold_verifier.sandbox.confine import closed_environment

START_SECONDS = 120.0


def environment_without_secrets() -> dict[str, str]:
    """The service's environment less its own settings, which may be keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VOLD_")}


class ForkServerClient:
    """One fork server process. The callbacks run on the event loop; none is called after `stop`.

    layers: what holds its workers in, once it has started.

    started(number), exited(number, waitstatus): a worker's. lost(): the process ended by itself after it was ready.
    """

    def __init__(
        self,
        options: dict[str, Any],
        *,
        started: Callable[[int], None],
        exited: Callable[[int, int], None],
        lost: Callable[[], None],
    ) -> None:
        self.options = options
        self.started = started
        self.exited = exited
        self.lost = lost
        self.layers: tuple[str, ...] = ()
        self._control: socket.socket | None = None
        self._buffer = b""
        self._process: asyncio.subprocess.Process | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Returns once every verifier is loaded. Raises OSError where that fails, TimeoutError after START_SECONDS.

        Call it in the main thread: the kernel ends the process with the thread that started it.
        """
        ours, theirs = socket.socketpair()
        options = {**self.options, "parent": os.getpid(), "fd": theirs.fileno()}
        sandboxed = self.options["pool"] == "sandbox"
        environment = closed_environment() if sandboxed else environment_without_secrets()
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "vold_verifier.engine.forkserver", json.dumps(options)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is the server's to handle
            )
        loop = asyncio.get_running_loop()
        self._control, self._ready = ours, loop.create_future()
        loop.add_reader(ours.fileno(), self._readable)
        try:
            await asyncio.wait_for(self._ready, START_SECONDS)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the process, and by the kernel's hand its workers."""
        self._hang_up()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def spawn(self, number: int) -> socket.socket:
        """Ask for a worker; returns the server's end of its pipe, not blocking."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._say({"spawn": number}, (theirs.fileno(),))
        return ours

    def kill(self, number: int) -> None:
        self._say({"kill": number})

    def _say(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError):  # its end of file is handled where it is read
                socket.send_fds(self._control, [json.dumps(message).encode() + b"\n"], descriptors)

    def _hang_up(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._ended()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))

    def _ended(self) -> None:
        self._hang_up()
        assert self._ready is not None
        if self._ready.done():
            self.lost()
        else:
            self._ready.set_exception(OSError("the workers cannot start: their fork server ended; its output says why"))

    def _heard(self, message: dict[str, Any]) -> None:
        assert self._ready is not None
        if "started" in message:
            self.started(message["started"])
        elif "exited" in message:
            self.exited(message["exited"], message["status"])
        elif "ready" in message:
            self.layers = tuple(message["layers"])
            self._ready.set_result(None)
        elif not self._ready.done():
            self._ready.set_exception(OSError(f"the workers cannot start: {message['error']}"))
