"""The process that forks workers: it has imported and warmed up every verifier, and does nothing else.

multiprocessing's forkserver would import the server's main module again in every worker and leaves no say in process
groups and signals; this one starts in the time of one import and forks a warm worker in milliseconds. It dies with
the server, and the workers die with it, by the kernel's hand (PR_SET_PDEATHSIG) even if the server was killed.

The sandbox's process shuts itself in before it forks, see `sandbox.confine`; its workers inherit the walls.

It is started with one end of a Unix socket as file descriptor `fd` and speaks lines of JSON on it:
  in   {"spawn": n} with the worker's socket as ancillary data, {"kill": n}
  out  {"ready": true, "layers": [...]}, {"error": text}, {"started": n}, {"exited": n, "status": waitstatus}
End of file on the socket ends it.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from typing import Any

from vold_verifier import registry
from vold_verifier.engine import worker
from vold_verifier.sandbox import kernel
from vold_verifier.sandbox.confine import Confinement
from vold_verifier.sandbox.tripwire import Tripwire
from vold_verifier.verifiers.base import Verifier


def die_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when `parent` is gone; leave at once if it already is."""
    if sys.platform == "linux":
        kernel.die_with_parent()
    if os.getppid() != parent:
        os._exit(0)


class ForkServer:
    def __init__(self, control: socket.socket, verifiers: dict[str, Verifier[Any]], options: dict[str, Any]) -> None:
        self.control = control
        self.verifiers = verifiers
        self.options = options
        self.number_of: dict[int, int] = {}
        self.pid_of: dict[int, int] = {}
        self.sockets: deque[int] = deque()

    def say(self, **message: Any) -> None:
        self.control.sendall(json.dumps(message).encode() + b"\n")

    def run(self) -> None:
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.inherited = (wake_read, wake_write)
        self.say(ready=True, layers=self.options["layers"])
        pending = b""
        while True:
            readable, _, _ = select.select([self.control, wake_read], [], [])
            if wake_read in readable:
                wake_read.recv(4096)
                self.reap()
            if self.control in readable:
                received, descriptors, _, _ = socket.recv_fds(self.control, 65536, 64)
                if not received:
                    return
                self.sockets.extend(descriptors)
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line))

    def obey(self, message: dict[str, Any]) -> None:
        if "spawn" in message:
            self.spawn(message["spawn"])
        elif (pid := self.pid_of.get(message["kill"])) is not None:
            os.kill(pid, signal.SIGKILL)  # not yet reaped, so the id is still this worker's

    def spawn(self, number: int) -> None:
        descriptor = self.sockets.popleft()
        pid = os.fork()
        if pid == 0:
            self.become_worker(descriptor)
        os.close(descriptor)
        self.pid_of[number], self.number_of[pid] = pid, number
        self.say(started=number)

    def become_worker(self, descriptor: int) -> None:
        status = 1
        try:
            die_with_parent(self.options["pid"])
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for end in self.inherited:
                end.close()
            tripwire = None
            if self.options["pool"] == "sandbox":
                worker.limit_sandboxed(self.options["memory_bytes"])
                tripwire = Tripwire()
                tripwire.install()
            else:
                worker.limit_memory(self.options["memory_bytes"])
            status = 0
            with socket.socket(fileno=descriptor) as connection, contextlib.suppress(BrokenPipeError, ConnectionError):
                status = worker.run(connection, self.verifiers, self.options["cpu_seconds"], tripwire)
        except MemoryError:
            status = worker.EXIT_OUT_OF_MEMORY
        except BaseException:
            status = 1
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self.number_of.pop(pid, 0)
            if not number:
                continue  # an orphan of the sandbox, whose first process this is
            del self.pid_of[number]
            self.say(exited=number, status=status)


def main(options: dict[str, Any]) -> None:
    die_with_parent(options["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confinement = Confinement() if options["pool"] == "sandbox" else None
    if confinement is not None:
        confinement.enter()
    control = socket.socket(fileno=options["fd"])
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a verifier that prints must not speak on the server's stdout
    try:
        verifiers = registry.of_pool(registry.load(options["plugins"], options["enable"]), options["pool"])
        for verifier in verifiers.values():
            verifier.warm_up()
    except Exception as error:
        control.sendall(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        raise
    layers = confinement.lock() if confinement is not None else []
    gc.collect()
    gc.freeze()  # what is shared with the workers stays out of their collections, and so out of copy-on-write
    ForkServer(control, verifiers, {**options, "pid": os.getpid(), "layers": layers}).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
