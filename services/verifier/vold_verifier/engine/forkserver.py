"""The fork server: a process that imports and warms up every verifier, then forks workers.

The forkserver of multiprocessing would import the service's main module again in every worker, and gives no control of
process groups and signals. This one starts in the time of one import and forks a warm worker in milliseconds. The
kernel ends it with the service, and the workers with it (PR_SET_PDEATHSIG), even if the service was killed.

The sandbox's fork server confines itself before it forks, see `sandbox.confine`; its workers inherit the confinement.

It is started with one end of a Unix socket as file descriptor `fd`, and exchanges lines of JSON on it:
  in   {"spawn": n} with the worker's socket as ancillary data, {"kill": n}
  out  {"ready": true, "layers": [...]}, {"error": text}, {"started": n}, {"exited": n, "status": waitstatus}
It ends at the end of file on the socket, and without a word if the service has gone: the kernel closes the files of
a service that ends before it ends this process.
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
from vold_verifier.sandbox.confine import Confinement, hide_memory
from vold_verifier.sandbox.tripwire import Tripwire
from vold_verifier.verifiers.base import Verifier


def die_with_parent(parent: int) -> None:
    """Have the kernel (Linux) kill this process when `parent` ends; exit at once if it has ended."""
    if sys.platform == "linux":
        kernel.die_with_parent()
    if os.getppid() != parent:
        os._exit(0)


def send(control: socket.socket, **message: Any) -> None:
    """Tell the service; end this process if the service no longer listens."""
    try:
        control.sendall(json.dumps(message).encode() + b"\n")
    except ConnectionError:
        os._exit(0)


class ForkServer:
    """Forks and kills workers as the service says on `control`, and reports the workers that end."""

    def __init__(self, control: socket.socket, verifiers: dict[str, Verifier[Any]], options: dict[str, Any]) -> None:
        self.control = control
        self.verifiers = verifiers
        self.options = options
        self.number_by_pid: dict[int, int] = {}
        self.pid_by_number: dict[int, int] = {}
        self.worker_sockets: deque[int] = deque()

    def send(self, **message: Any) -> None:
        send(self.control, **message)

    def run(self) -> None:
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.wakeup_sockets = (wake_read, wake_write)
        self.send(ready=True, layers=self.options["layers"])
        pending = b""
        while True:
            readable, _, _ = select.select([self.control, wake_read], [], [])
            if wake_read in readable:
                wake_read.recv(4096)
                self.reap()
            if self.control in readable:
                try:
                    received, descriptors, _, _ = socket.recv_fds(self.control, 65536, 64)
                except ConnectionError:
                    return
                if not received:
                    return
                self.worker_sockets.extend(descriptors)
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self.handle(json.loads(line))

    def handle(self, message: dict[str, Any]) -> None:
        if "spawn" in message:
            self.spawn(message["spawn"])
        elif (pid := self.pid_by_number.get(message["kill"])) is not None:
            os.kill(pid, signal.SIGKILL)  # the worker is not reaped, so the id is still its own

    def spawn(self, number: int) -> None:
        descriptor = self.worker_sockets.popleft()
        pid = os.fork()
        if pid == 0:
            self.run_worker(descriptor)
        os.close(descriptor)
        self.pid_by_number[number], self.number_by_pid[pid] = pid, number
        self.send(started=number)

    def run_worker(self, descriptor: int) -> None:
        """Run the forked process, and end it. descriptor: of the worker's socket."""
        status = 1
        try:
            die_with_parent(self.options["pid"])
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for end in self.wakeup_sockets:
                end.close()
            tripwire = None
            if self.options["pool"] == "sandbox":
                worker.limit_resources(self.options["memory_bytes"])
                tripwire = Tripwire()
                tripwire.install()
            else:
                worker.limit_memory(self.options["memory_bytes"])
            status = 0
            with socket.socket(fileno=descriptor) as connection, contextlib.suppress(BrokenPipeError, ConnectionError):
                status = worker.serve(connection, self.verifiers, self.options["cpu_seconds"], tripwire)
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
            number = self.number_by_pid.pop(pid, 0)
            if not number:
                continue  # an orphan: the sandbox's fork server is process 1 of its namespace
            del self.pid_by_number[number]
            self.send(exited=number, status=status)


def main(options: dict[str, Any]) -> None:
    die_with_parent(options["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confinement = Confinement() if options["pool"] == "sandbox" else None
    if confinement is not None:
        confinement.enter()
    control = socket.socket(fileno=options["fd"])
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a verifier must not print to the service's stdout
    try:
        verifiers = registry.in_pool(registry.load(options["plugins"], options["enable"]), options["pool"])
        for verifier in verifiers.values():
            verifier.warm_up()
    except Exception as error:
        send(control, error=f"{type(error).__name__}: {error}")
        if isinstance(error, registry.PluginError):
            return  # the service finds and reports it too
        raise
    layers = confinement.lock() if confinement is not None else []
    # Workers hold the items of all tenants, with their references. A change of user would undo this, and before
    # `enter` it would keep the process from its own user namespace.
    hide_memory()
    gc.collect()
    gc.freeze()  # otherwise a collection in a worker writes to the shared pages, which copies them
    ForkServer(control, verifiers, {**options, "pid": os.getpid(), "layers": layers}).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
