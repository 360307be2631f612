"""A verifier server as a real process, and raw gRPC calls to it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import grpc
import programs
import psutil
from vold_proto.v1 import verifier_pb2, verifier_pb2_grpc

HERE = Path(__file__).parent


class Server:
    def __init__(self, process: subprocess.Popen[str], ready: dict[str, str]) -> None:
        self.process = process
        self.ready = ready
        self.url = ready["http"]
        self.grpc_url = f"grpc://{ready['grpc']}" if not ready["grpc"].startswith("unix:") else ready["grpc"]
        self.channel = grpc.insecure_channel(ready["grpc"])
        self.stub = verifier_pb2_grpc.VerifierServiceStub(self.channel)

    def verify(self, *items: verifier_pb2.VerifyItem, timeout: float = 60) -> list[verifier_pb2.VerifyResult]:
        return list(self.stub.Verify(verifier_pb2.VerifyRequest(items=items), timeout=timeout).results)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextlib.contextmanager
def running(
    *options: str,
    grpc_address: str = "127.0.0.1:0",
    log: IO[str] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Start a server with verifier_plugin on free ports; kill it at the end if it still runs. log: for its stderr."""
    command = [sys.executable, "-m", "vold_verifier", "serve", "--http", "127.0.0.1:0", "--grpc", grpc_address]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    process = programs.start(
        [*command, "--plugin", "verifier_plugin", *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    assert process.stdout is not None
    try:
        server = Server(process, json.loads(process.stdout.readline()))
        with server.channel:
            yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def item(verifier: str, completion: str = "", reference: str = "", name: str = "", **parameters: object):
    message = verifier_pb2.VerifyItem(id=name, verifier=verifier, completion=completion, reference=reference)
    if parameters:
        message.parameters.update(parameters)
    return message
