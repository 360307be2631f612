"""Inference servers as processes, and the gateway in front of them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import programs
from vold_teacher.backends.upstream.backend import UpstreamBackend, UpstreamOptions


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], port: int, seconds: float = 240, **environment: str):
    """A server as a process; waits until /health replies."""
    child = programs.start(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=sys.stderr)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}")
    try:
        until = time.monotonic() + seconds
        while True:
            assert child.poll() is None, f"{command} ended with {child.poll()}"
            assert time.monotonic() < until, f"{command} did not come up"
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/health").status_code == 200:
                    break
            time.sleep(0.2)
        yield child
    finally:
        client.close()
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stand_in(folder: Path, port: int, *options: str):
    """upstream_servers.py as a process; its docstring lists the paths."""
    script = str(Path(__file__).with_name("upstream_servers.py"))
    return process([sys.executable, script, str(folder), "--port", str(port), *options], port)


def gateway(folder: Path, dialect: str, *addresses: str | int, **options) -> UpstreamBackend:
    """addresses: PORT, or PORT/PATH, on this machine."""
    urls = f"{dialect}+" + ",".join(f"http://127.0.0.1:{address}" for address in addresses)
    return UpstreamBackend(UpstreamOptions(urls, tokenizer=folder, max_logprobs=64, **options))
