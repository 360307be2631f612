"""Runs `vold-teacher serve` and `vold-verifier serve` as processes, for tests of all packages."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

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
    with started(service, *ports, *arguments, stderr=subprocess.PIPE) as (process, ready):
        yield Server(process, ready["http"], grpc_url(ready["grpc"]))


@contextlib.contextmanager
def started(
    service: str,
    *arguments: str,
    stderr: IO[str] | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen, dict]]:
    """The process of `vold-teacher serve` or `vold-verifier serve`, killed when the block ends, and its ready line.

    stderr: as for subprocess.Popen; a pipe is read, and shown if the service does not start. environment: variables
    besides those of this process.
    """
    process = programs.start(
        [sys.executable, "-m", f"vold_{service}", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    errors: list[str] = []
    if process.stderr is not None:
        threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True).start()
    try:
        line = process.stdout.readline()
        assert line, f"vold-{service} ended with {process.wait(10)}:\n{''.join(errors)}"
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def grpc_url(address: str) -> str:
    """The URL for a client of an address in a ready line."""
    return address if address.startswith("unix:") else f"grpc://{address}"
