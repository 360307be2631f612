"""Processes that are killed, files that are damaged, connections and requests that are meant to stop a service: others
are served, and the service says what state it is in.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import held_plugin
import httpx
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teacher_fixtures import save_model, teacher_server
from verifier_server import Server, item, running
from vold_client import Completion, TeacherClient
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_teacher.engine.cache import _pack
from vold_teacher.types import SequenceScore
from vold_verifier.engine.pool import RESPAWN_DELAY_SECONDS, Pool, PoolOptions


def until(condition: Callable[[], object]) -> None:
    """Wait. A fault that never ends is ended by the test's own time limit."""
    while not condition():
        time.sleep(0.02)


# -- the verifier's workers


@contextmanager
def held_verifier(folder: Path) -> Iterator[Server]:
    """A verifier whose fork servers do not load while `folder` has a file `hold`."""
    shutil.copy(held_plugin.__file__, folder / "held_plugin.py")
    path = os.pathsep.join([str(folder), str(Path(held_plugin.__file__).parent), os.environ.get("PYTHONPATH", "")])
    options = ("--workers", "2", "--sandbox-workers", "2", "--plugin", "held_plugin")
    with running(*options, environment={"PYTHONPATH": path}) as server:
        yield server


def fork_server(server: Server, pool: str) -> psutil.Process | None:
    """The process that starts a pool's workers."""
    for child in psutil.Process(server.process.pid).children():
        if f'"pool": "{pool}"' in " ".join(child.cmdline()):
            return child
    return None


def ready(server: Server) -> set[bool]:
    """What the two faces say."""
    health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
    return {
        httpx.get(f"{server.url}/readyz").status_code == 200,
        health.status == health_pb2.HealthCheckResponse.SERVING,
    }


def workers_up(server: Server) -> int:
    return httpx.get(f"{server.url}/v1/status").json()["workers"]["up"]


@pytest.mark.parametrize("pool", ["main", "sandbox"])
def test_a_verifier_whose_fork_servers_die_while_they_load_says_so_and_comes_back(pool, tmp_path):
    agree = item(f"agree-{pool}", name="a")
    with held_verifier(tmp_path) as server:
        assert server.verify(agree)[0].reward == 1.0
        assert ready(server) == {True}
        assert workers_up(server) == 4
        (tmp_path / "hold").touch()
        first = fork_server(server, pool)
        first.kill()
        until((tmp_path / "loading").exists)
        waiting = server.stub.Verify.future(verifier_pb2.VerifyRequest(items=[agree]), timeout=60)
        until(lambda: ready(server) == {False})
        assert workers_up(server) == 2, "those of the other pool"
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
        assert workers_up(server) == 4
        assert [result.reward for result in server.verify(*[agree] * 20)] == [1.0] * 20
        server.process.terminate()
        assert server.process.wait(60) == 0


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
