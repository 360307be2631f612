"""Python programs as processes of their own that start in a second: their imports are done already.

`start` is subprocess.Popen and `run` is subprocess.run, as far as tests use them; see preloaded.py for how. Where the
environment would have mattered to the imports, they are the real ones.
"""

import array
import atexit
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

READ_BY_IMPORTS = ("GRPC_", "HF_HOME", "HF_HUB_", "LD_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")
"""Variables that matter while modules are imported. PYTHONPATH is seen to."""


@cache
def _preloaded() -> tuple[socket.socket, dict[str, str]]:
    """The process that forks, and the environment that its imports saw; one for each process of the tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("preloaded.py"))
    process = subprocess.Popen(
        [sys.executable, script, str(theirs.fileno())], env=environment, pass_fds=[theirs.fileno()]
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(30)

    atexit.register(end)
    return ours, environment


def _alike(environment: Mapping[str, str], seen: Mapping[str, str]) -> bool:
    names = {name for name in {*environment, *seen} if name.startswith(READ_BY_IMPORTS)} - {"PYTHONPATH"}
    return all(environment.get(name) == seen.get(name) for name in names)


def start(
    command: Sequence[str],
    *,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    text: bool = False,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
) -> "subprocess.Popen | Program":
    """command: [sys.executable, "-m", MODULE, ARGUMENT...] or [sys.executable, SCRIPT, ARGUMENT...]."""
    assert command[0] == sys.executable, command
    environment = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
    control, seen = _preloaded()
    if not _alike(environment, seen):
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, text=text, env=environment,
            start_new_session=start_new_session,
        )  # fmt: skip
    return Program(control, command, (stdin, stdout, stderr), text, environment, start_new_session)


def run(
    command: Sequence[str], *, said: str | None = None, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess:
    """What it wrote, as text; a status that is not 0 is no error. said: its standard input."""
    with tempfile.TemporaryFile("w+") as given:
        given.write(said or "")
        given.seek(0)
        options = {"stdin": given if said is not None else None, **options}
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    out, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


class Program:
    """A process that preloaded.py started, with the face of subprocess.Popen."""

    def __init__(
        self,
        control: socket.socket,
        command: Sequence[str],
        streams: tuple[Any, Any, Any],
        text: bool,
        environment: Mapping[str, str],
        new_session: bool,
    ) -> None:
        self.args = list(command)
        self.returncode: int | None = None
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        given, close = [], []
        for number, (name, stream) in enumerate(zip(("stdin", "stdout", "stderr"), streams, strict=True)):
            if stream == subprocess.PIPE:
                read, write = os.pipe()
                inner, outer = (read, write) if number == 0 else (write, read)
                opened = open(outer, ("w" if number == 0 else "r") + ("" if text else "b"))  # noqa: SIM115
                setattr(self, name, opened)
                close.append(inner)
            elif stream == subprocess.DEVNULL:
                inner = os.open(os.devnull, os.O_RDWR)
                close.append(inner)
            elif stream == subprocess.STDOUT:
                inner = given[1]
            else:
                inner = number if stream is None else stream if isinstance(stream, int) else stream.fileno()
            given.append(inner)
        self._status, theirs = socket.socketpair()
        request = {
            "arguments": list(map(str, self.args[1:])),
            "environment": dict(environment),
            "folder": os.getcwd(),
            "new_session": new_session,
        }
        socket.send_fds(control, [json.dumps(request).encode()], [*given, theirs.fileno()])
        theirs.close()
        for descriptor in close:
            os.close(descriptor)
        self.pid = self._number()
        assert self.pid, f"no process for {self.args}: see what preloaded.py printed"

    def _number(self) -> int | None:
        packed = self._status.recv(8, socket.MSG_WAITALL)
        return array.array("q", packed)[0] if len(packed) == 8 else None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def _end(self) -> None:
        status = self._number()
        self._status.close()
        self.returncode = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Both streams to their ends. Raises subprocess.TimeoutExpired."""
        streams = {stream.fileno(): (stream, []) for stream in (self.stdout, self.stderr) if stream}
        until = None if timeout is None else time.monotonic() + timeout
        opened = list(streams)
        while opened:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = select.select(opened, [], [], left)[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            for descriptor in ready:
                chunk = os.read(descriptor, 1 << 16)
                streams[descriptor][1].append(chunk)
                if not chunk:
                    opened.remove(descriptor)
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        written = [stream and _whole(*streams[stream.fileno()]) for stream in (self.stdout, self.stderr)]
        return written[0], written[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()


def _whole(stream: IO[Any], chunks: list[bytes]) -> str | bytes:
    whole = b"".join(chunks)
    return whole.decode() if isinstance(stream, io.TextIOBase) else whole
