"""Processes that are killed, files that are damaged, connections and requests that are meant to stop a service: others
are served, and the service says what state it is in.
"""

import asyncio
import json
import os
import resource
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import programs
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from teacher_fixtures import save_model, teacher_server
from verifier_server import HERE as HELPERS
from verifier_server import Server, item, running
from vold_client import Completion, InvalidArgument, TeacherClient
from vold_proto.v1 import status_pb2, verifier_pb2, verifier_pb2_grpc
from vold_teacher.engine.cache import _pack
from vold_teacher.types import SequenceScore
from vold_verifier.engine.options import PoolOptions
from vold_verifier.engine.pool import RESPAWN_DELAY_SECONDS, Pool


def until(condition: Callable[[], object]) -> None:
    """Wait. A fault that never ends is ended by the test's own time limit."""
    while not condition():
        time.sleep(0.02)


# -- the verifier's workers


@contextmanager
def held_verifier(folder: Path, pool: str) -> Iterator[Server]:
    """A verifier whose fork servers do not load while `folder` has a file `hold`; `agree` runs in `pool`."""
    shutil.copy(HELPERS / "held_plugin.py", folder / f"held_{pool}.py")
    path = os.pathsep.join([str(folder), str(HELPERS), os.environ.get("PYTHONPATH", "")])
    options = ("--workers", "2", "--sandbox-workers", "2", "--plugin", f"held_{pool}")
    with running(*options, environment={"PYTHONPATH": path}) as server:
        yield server


def fork_server(server: Server, pool: str) -> psutil.Process | None:
    """The process that starts a pool's workers."""
    for child in psutil.Process(server.process.pid).children():
        if f'"pool": "{pool}"' in " ".join(child.cmdline()):
            return child
    return None


@cache
def client() -> httpx.Client:
    """One for all: each would read the machine's certificates."""
    return httpx.Client(timeout=60)


def ready(server: Server) -> set[bool]:
    """What the two faces say."""
    health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
    return {
        client().get(f"{server.url}/readyz").status_code == 200,
        health.status == health_pb2.HealthCheckResponse.SERVING,
    }


def workers_up(server: Server) -> int:
    return client().get(f"{server.url}/v1/status").json()["workers"]["up"]


@pytest.mark.parametrize("pool", ["main", pytest.param("sandbox", marks=pytest.mark.slow)])
def test_a_verifier_whose_fork_servers_die_while_they_load_says_so_and_comes_back(pool, tmp_path):
    agree = item("agree")
    others = 2 if pool == "sandbox" else 0
    with held_verifier(tmp_path, pool) as server:
        assert server.verify(agree)[0].reward == 1.0
        assert ready(server) == {True}
        assert workers_up(server) == 2 + others
        (tmp_path / "hold").touch()
        first = fork_server(server, pool)
        first.kill()
        until((tmp_path / "loading").exists)
        waiting = server.stub.Verify.future(verifier_pb2.VerifyRequest(items=[agree]), timeout=60)
        until(lambda: ready(server) == {False})
        assert workers_up(server) == others
        time.sleep(2 * RESPAWN_DELAY_SECONDS)  # a worker that ended is replaced after this delay, in the same pool
        assert not waiting.done(), "the item waits for the fork server that loads"
        second = fork_server(server, pool)
        assert second is not None
        assert second.pid != first.pid
        second.kill()
        (lost,) = waiting.result().results
        (refused,) = server.verify(agree)
        for result in (lost, refused):
            assert result.error.code == status_pb2.UNAVAILABLE
            assert not result.HasField("reward")
        (tmp_path / "hold").unlink()
        until(lambda: ready(server) == {True})
        assert workers_up(server) == 2 + others
        assert [result.reward for result in server.verify(*[agree] * 20)] == [1.0] * 20
        server.process.terminate()
        assert server.process.wait(60) == 0


@pytest.mark.slow
def test_a_fork_server_that_stands_still_is_replaced():
    """Nobody else can kill and start its workers."""

    async def main() -> None:
        options = PoolOptions(
            workers=2, cpu_seconds=0.3, wall_seconds=0.5, stall_seconds=0.5, plugins=("verifier_plugin",)
        )
        pool = Pool(options)
        before = set(psutil.Process().children())
        await pool.start()
        (still,) = set(psutil.Process().children()) - before
        still.send_signal(signal.SIGSTOP)
        results: dict[int, verifier_pb2.VerifyResult] = {}
        done = asyncio.Event()

        def on_result(key: int, result: verifier_pb2.VerifyResult) -> None:
            results[key] = result
            if len(results) == 12:
                done.set()

        queue = pool.open_queue(on_result)
        for key in range(12):
            queue.put(key, item("stubborn" if key < 2 else "numeric", "1", "1").SerializeToString(), 1)
        pool.dispatch()
        await asyncio.wait_for(done.wait(), 60)
        assert {results[key].error.code for key in (0, 1)} == {status_pb2.DEADLINE_EXCEEDED}
        assert {results[key].reward for key in range(2, 12)} == {1.0}
        assert pool.available
        await pool.stop()
        assert not psutil.wait_procs([still], timeout=10)[1]

    asyncio.run(main())


# -- the teacher's scores on disk


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.mark.slow
def test_a_damaged_cache_folder_changes_no_score_and_stops_no_teacher(model, tmp_path):
    prompts, completions = [[6, 7, 8]], [Completion(0, range(10 + index, 50 + index)) for index in range(4)]
    options = ("--cache-dir", str(tmp_path / "scores"))
    file = tmp_path / "scores" / "scores.sqlite"

    def scores() -> tuple[list[bool], list[np.ndarray]]:
        """Of a teacher that starts with the folder as it is: which came from the cache, and the values."""
        with teacher_server(model, *options) as server, TeacherClient(f"grpc://{server.grpc}") as teacher:
            found = teacher.score(prompts, completions, top_k=2).scores
        return [score.cached for score in found], [score.logprobs for score in found]

    cached, first = scores()
    assert not any(cached)
    store = sqlite3.connect(file)
    rows = store.execute("SELECT key, score FROM scores ORDER BY key").fetchall()
    flipped = bytearray(rows[0][1])
    flipped[-1] ^= 0x40  # of the last value's exponent
    short = _pack(rows[1][0], SequenceScore(np.zeros(5, np.float32)))
    for key, row in ((rows[0][0], flipped), (rows[1][0], short), (rows[2][0], rows[3][1])):
        store.execute("UPDATE scores SET score = ? WHERE key = ?", (bytes(row), key))
    store.commit()
    store.close()
    cached, again = scores()
    assert sorted(cached) == [False, False, False, True]
    file.write_bytes(b"rubbish" * 1000)
    cached, anew = scores()
    assert not any(cached)
    assert file.with_name("scores.sqlite.damaged").exists()
    for other in (again, anew):
        np.testing.assert_allclose(other, first, atol=1e-5)


# -- requests


PROMPT, COMPLETION = [{"ids": [5, 6]}], [{"ids": [7, 8, 9]}]
MESSAGES = [{"role": "user", "content": "ab"}]
VERIFIED = {"verifier": "numeric", "completion": "1", "reference": "1"}
VALID: dict[str, dict[str, Any]] = {
    "/v1/score": {"prompts": PROMPT, "completions": COMPLETION, "options": {"top_k": 1}, "request_id": "a"},
    "/v1/generate": {"prompts": PROMPT, "options": {"max_tokens": 1}, "run_id": "a"},
    "/v1/completions": {"prompt": "ab", "max_tokens": 1, "stop": ["b"], "request_id": "a", "temperature": 1},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1, "model": ""},
    "/tokenize": {"prompt": "ab", "model": ""},
    "/detokenize": {"tokens": [5, 6]},
    "/v1/models/load": {"name": "a", "path": "a"},
    "/v1/models/unload": {"name": "a"},
    "/v1/verify": {"items": [VERIFIED], "request_id": "a", "run_id": "a"},
    "/v1/verify#": {**VERIFIED, "parameters": {"tolerance": 1}, "id": "a", "prompt": "a"},
}
"""A valid body for each route; "#": an item of its list."""

TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(["\ud800", "a\udfffb", "\0", "\u202e"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, -(2**63), 10**400, 1e-38])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NESTED = st.tuples(VALUES, st.sampled_from([1, 3, 150, 190, 800])).map(lambda pair: nested(*pair))


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def bodies(draw) -> tuple[str, str]:
    """A route, and its body with the value of one field, or with all of it, replaced by anything."""
    route = draw(st.sampled_from(sorted(VALID)))
    value = draw(VALUES | NESTED)
    body = VALID[route] | {draw(st.sampled_from(sorted(VALID[route])) | TEXTS): value}
    if route.endswith("#"):
        body = {"items": [body]}
    return route.rstrip("#"), json.dumps(draw(st.sampled_from([body, body, body, value])))


def test_no_json_is_a_fault_of_the_server(pocket_teacher, verifier):

    def status(route: str, body: str | bytes) -> int:
        url = verifier.http if route == "/v1/verify" else pocket_teacher.http
        return client().post(url + route, content=body, headers={"content-type": "application/json"}).status_code

    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(bodies())
    def ask(request: tuple[str, str]) -> None:
        assert status(*request) < 500

    ask()
    for route in {route.rstrip("#") for route in VALID}:
        for body in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"\\ud800": 1}', b""):
            assert 400 <= status(route, body) < 500, (route, body[:20])
        valid = VALID[route] if route + "#" not in VALID else {"items": [VERIFIED]}
        assert status(route, json.dumps(valid)) in (200, 403, 404, 422), route


def test_no_temperature_gives_scores_without_values_or_fails_another_request(pocket_teacher):
    completion = [Completion(0, [7, 8, 9])]
    with TeacherClient(pocket_teacher.grpc) as teacher:
        vocab_size = teacher.info().vocab_size
        others = teacher.generate([[5, 6]], max_tokens=200, temperature=1.0, seed=1)
        for exponent in (-45, -40, -38, -37, -20, -7, -5, -4, -3, 0, 10, 38):
            temperature = float(np.float32(10.0**exponent))
            if exponent < -4:
                with pytest.raises(InvalidArgument, match=r"at least 0\.0001"):
                    teacher.score([[5, 6]], completion, temperature=temperature)
            else:
                (score,) = teacher.score(
                    [[5, 6]], completion, temperature=temperature, top_k=vocab_size, entropy=True
                ).scores
                for values in (score.logprobs, score.top_logprobs, score.entropy):
                    assert np.isfinite(values).all(), temperature
            (sampled,) = teacher.generate([[5, 6]], max_tokens=2, temperature=temperature, seed=1)
            assert np.isfinite(sampled.logprobs).all()
            if exponent < -6:
                (greedy,) = teacher.generate([[5, 6]], max_tokens=2, temperature=0.0)
                assert list(sampled.ids) == list(greedy.ids), temperature
        assert next(iter(others)).finish_reason


# -- connections


@contextmanager
def narrow_verifier(idle_seconds: int) -> Iterator[tuple[str, str]]:
    """The addresses of a verifier that may have 400 files open: 72 connections for each face, 36 of one address."""
    options = (
        *("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", "1"),
        *("--idle-seconds", str(idle_seconds), "--max-body-bytes", str(1 << 18)),
    )
    process = programs.start(
        ["bash", "-c", 'ulimit -n 400; exec "$0" "$@"', sys.executable, "-m", "vold_verifier", "serve", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ready = json.loads(process.stdout.readline())
        yield ready["http"].removeprefix("http://"), ready["grpc"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def impatient() -> Iterator[tuple[str, str]]:
    with narrow_verifier(idle_seconds=1) as addresses:
        yield addresses


def connect(address: str, sent: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0))
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the service closes the connection, at once or after its limit of silence. Closes this end too."""
    with connection:
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
        return True


def serves(address: str, source: str = "127.0.0.1") -> bool:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, timeout=60) as client:
        try:
            return client.get(f"http://{address}/v1/verifiers").status_code == 200
        except httpx.TransportError:
            return False


def test_the_limit_of_open_files_is_raised(verifier):
    soft, hard = resource.prlimit(verifier.process.pid, resource.RLIMIT_NOFILE)
    assert soft >= min(hard, 65_536)


SILENT = [
    b"",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n",
    b"POST /v1/verify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{",
]


@pytest.mark.slow
def test_one_address_does_not_shut_the_http_door():
    with narrow_verifier(idle_seconds=600) as (http, _):
        held = [connect(http, sent) for _ in range(150) for sent in SILENT]
        for _ in range(10):
            assert serves(http, source="127.0.0.2")
        closed = [connection for connection in held if select.select([connection], [], [], 0)[0]]
        assert 0 < len(held) - len(closed) <= 36, "the first are still held"
        assert all(map(ended, closed))
        for connection in held:
            connection.close()
        until(lambda: serves(http))


H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""The client's preface and empty settings."""


def h2_call(path: str, sent: bytes = b"") -> bytes:
    """A call's headers, and the beginning of its message, which does not end."""

    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    fields = (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost")
    block = b"".join(
        literal(*field) for field in (*fields, (b"content-type", b"application/grpc"), (b"te", b"trailers"))
    )
    head = len(block).to_bytes(3, "big") + b"\1\4" + (1).to_bytes(4, "big") + block
    return head + (len(sent).to_bytes(3, "big") + b"\0\0" + (1).to_bytes(4, "big") + sent if sent else b"")


@pytest.mark.slow
def test_connections_without_a_whole_call_do_not_shut_the_grpc_door(impatient):
    _, address = impatient
    verify = "/vold.v1.VerifierService/Verify"
    kinds = [b"", H2, H2 + h2_call(verify), H2 + h2_call(verify, b"\0\0\1\0\0half of a message")]
    kinds.append(H2 + h2_call("/grpc.health.v1.Health/Check"))
    held = [connect(address, sent) for _ in range(30) for sent in kinds]
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        assert stub.ListVerifiers(verifier_pb2.ListVerifiersRequest(), timeout=60, wait_for_ready=True).verifiers
    assert all(map(ended, held))


def test_a_connection_has_a_hundred_calls_at_a_time(impatient):
    """Without a limit a flood of streams that are reset at once fills gRPC's queue, and honest calls are lost there."""
    with connect(impatient[1], H2) as connection, connection.makefile("rb") as replies:
        length, kind = int.from_bytes(replies.read(3), "big"), replies.read(1)
        replies.read(5)
        settings = replies.read(length)
    assert kind == b"\4", "of settings"
    by_id = {settings[at : at + 2]: int.from_bytes(settings[at + 2 : at + 6], "big") for at in range(0, length, 6)}
    assert by_id[b"\0\3"] == 100, "SETTINGS_MAX_CONCURRENT_STREAMS"


@pytest.mark.slow
def test_a_body_that_trickles_is_cut_off_and_a_slow_one_is_not(impatient):
    """Both never pause for the limit of silence, of one second."""
    head = "POST /v1/verify HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    trickle = connect(impatient[0], f"{head}content-length: 100000\r\n\r\n".encode())
    cut = threading.Event()
    threading.Thread(target=lambda: ended(trickle) and cut.set(), daemon=True).start()
    body = json.dumps({"items": [VERIFIED]}).encode() + b" " * 60_000
    slow = connect(impatient[0], f"{head}content-length: {len(body)}\r\n\r\n".encode())
    at = 0
    while at < len(body) or not cut.is_set():
        with suppress(OSError):  # it is cut
            trickle.sendall(b"x")
        slow.sendall(body[at : at + 4000])
        at += 4000
        time.sleep(0.15)
    with slow:
        assert slow.recv(12) == b"HTTP/1.1 200"
