"""A verifier server as a real process, and raw gRPC calls to it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import grpc
import psutil
from servers import grpc_url, started
from vold_proto.v1 import verifier_pb2, verifier_pb2_grpc

HERE = Path(__file__).parent


class Server:
    def __init__(self, process: subprocess.Popen[str], ready: dict[str, str]) -> None:
        self.process = process
        self.ready = ready
        self.url = ready["http"]
        self.grpc_url = grpc_url(ready["grpc"])
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
    arguments = ["--http", "127.0.0.1:0", "--grpc", grpc_address, "--plugin", "verifier_plugin", *options]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path, **(environment or {})}
    with started("verifier", *arguments, stderr=log, environment=variables) as (process, ready):
        server = Server(process, ready)
        with server.channel:
            yield server


def item(verifier: str, completion: str = "", reference: str = "", name: str = "", **parameters: object):
    message = verifier_pb2.VerifyItem(id=name, verifier=verifier, completion=completion, reference=reference)
    if parameters:
        message.parameters.update(parameters)
    return message
