"""Runs `vold-teacher serve` and `vold-verifier serve` as processes, for tests of all packages."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import programs


@dataclass
class Server:
    """A service that is ready. http, grpc: its URLs for a client."""

    process: subprocess.Popen
    http: str | None
    grpc: str

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(service: str, *arguments: str) -> Iterator[Server]:
    """`vold-teacher serve` or `vold-verifier serve` on free ports. The process is killed when the block ends."""
    ports = [] if "--grpc" in arguments else ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    process = programs.start(
        [sys.executable, "-m", f"vold_{service}", "serve", *ports, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        assert line, f"vold-{service} ended with {process.wait(10)}:\n{''.join(errors)}"
        ready = json.loads(line)
        address = ready["grpc"]
        yield Server(process, ready["http"], address if address.startswith("unix:") else f"grpc://{address}")
    finally:
        process.kill()
        process.wait()
