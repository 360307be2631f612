"""Starts Python programs as separate processes within a second: a preloaded process has already done their imports.

`start` works as subprocess.Popen and `run` as subprocess.run, as far as tests use them; preloaded.py describes how. If
the program's environment could change the imports, `start` uses subprocess itself.
"""

import array
import atexit
import io
import json
import os
import select
import shutil
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

IMPORT_VARIABLES = ("GRPC_", "HF_HOME", "HF_HUB_", "LD_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_",
                   "TRITON_", "VLLM_")  # fmt: skip
"""Prefixes of variables that modules read while they are imported. PYTHONPATH is handled by preloaded.py."""


PRELOADED = "VOLD_TESTS_PRELOADED"
"""The variable that holds the preloaded process's address."""


@cache
def preload() -> socket.socket:
    """Start the preloaded process, for this process and those that inherit its environment. It ends with this one."""
    folder = tempfile.mkdtemp(prefix="vold-tests-")
    address = os.path.join(folder, "preloaded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("preloaded.py"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        control = _connect(address)
        process = subprocess.Popen(
            [sys.executable, script, str(listener.fileno())], env=environment, pass_fds=[listener.fileno()]
        )
    os.environ[PRELOADED] = address

    def stop() -> None:
        control.close()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return control


@cache
def _preloaded() -> tuple[socket.socket, dict[str, str]]:
    """A connection to the preloaded process, and the environment to which its imports fit: that of this process at the
    first call, before which libraries that were imported may have set variables of theirs.
    """
    if PRELOADED not in os.environ:
        preload()
    control = _connect(os.environ[PRELOADED])
    atexit.register(control.close)
    return control, {"OMP_NUM_THREADS": "1", **os.environ}


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    return connection


def _same_imports(environment: Mapping[str, str], preloaded: Mapping[str, str]) -> bool:
    names = {name for name in {*environment, *preloaded} if name.startswith(IMPORT_VARIABLES)} - {"PYTHONPATH"}
    return all(environment.get(name) == preloaded.get(name) for name in names)


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
    """command: [PYTHON, "-m", MODULE, ARGUMENT...] or [PYTHON, SCRIPT, ARGUMENT...]; another interpreter than
    sys.executable has packages of its own, and starts as it is.
    """
    environment = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
    control, preloaded = _preloaded()
    if command[0] != sys.executable or not _same_imports(environment, preloaded):
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, text=text, env=environment,
            start_new_session=start_new_session,
        )  # fmt: skip
    return Program(control, command, (stdin, stdout, stderr), text, environment, start_new_session)


def run(
    command: Sequence[str], *, stdin_text: str | None = None, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess:
    """The completed process with its output as text. A nonzero status raises nothing."""
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.write(stdin_text or "")
        stdin.seek(0)
        options = {"stdin": stdin if stdin_text is not None else None, **options}
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    out, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


class Program:
    """A process that preloaded.py started, with the interface of subprocess.Popen."""

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
        descriptors, close = [], []
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
                inner = descriptors[1]
            else:
                inner = number if stream is None else stream if isinstance(stream, int) else stream.fileno()
            descriptors.append(inner)
        self._status, child_end = socket.socketpair()
        request = {
            "arguments": list(map(str, self.args[1:])),
            "environment": dict(environment),
            "folder": os.getcwd(),
            "new_session": new_session,
        }
        socket.send_fds(control, [json.dumps(request).encode()], [*descriptors, child_end.fileno()])
        child_end.close()
        for descriptor in close:
            os.close(descriptor)
        self.pid = self._read_number()
        assert self.pid, f"no process for {self.args}: see the output of preloaded.py"

    def _read_number(self) -> int | None:
        packed = self._status.recv(8, socket.MSG_WAITALL)
        return array.array("q", packed)[0] if len(packed) == 8 else None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._read_status()
        return self.returncode

    def _read_status(self) -> None:
        status = self._read_number()
        self._status.close()
        self.returncode = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._read_status()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read stdout and stderr to their ends and wait. Raises subprocess.TimeoutExpired."""
        streams = {stream.fileno(): (stream, []) for stream in (self.stdout, self.stderr) if stream}
        deadline = None if timeout is None else time.monotonic() + timeout
        open_descriptors = list(streams)
        while open_descriptors:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = select.select(open_descriptors, [], [], remaining)[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            for descriptor in ready:
                chunk = os.read(descriptor, 1 << 16)
                streams[descriptor][1].append(chunk)
                if not chunk:
                    open_descriptors.remove(descriptor)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        output = [stream and _join_chunks(*streams[stream.fileno()]) for stream in (self.stdout, self.stderr)]
        return output[0], output[1]

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


def _join_chunks(stream: IO[Any], chunks: list[bytes]) -> str | bytes:
    data = b"".join(chunks)
    return data.decode() if isinstance(stream, io.TextIOBase) else data
