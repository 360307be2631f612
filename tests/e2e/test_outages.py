"""Outages of a teacher or a verifier during a run: the run waits, and after the limit saves and stops."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import programs
import pytest
from servers import serving
from vold_client import AsyncTeacherClient, Unavailable
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import TracesConfig, TrainConfig, load
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.report import build_report
from vold_trainer.services import local, outages
from vold_trainer.training import loop
from vold_trainer.training.train import run_train

SMALL = (
    *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "steps=4", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0"),
)
TEACHER = ("--model", str(checkpoint_path("teacher")))


def config(out: Path, teacher: str, verifier: str, *overrides: str) -> TrainConfig:
    urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    return load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, *overrides])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pocket_teacher, verifier):
    """metrics.jsonl of the same run without an outage, by rollout.ahead."""

    @cache
    def rows(ahead: int) -> list[dict]:
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        run_train(config(out, pocket_teacher.grpc, verifier.grpc, f"rollout.ahead={ahead}"))
        return read_json_lines(out / "metrics.jsonl")

    return rows


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for key in ("loss", "reward/mean", "teacher/k2", "grad_norm", "length/mean", "staleness"):
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), (row["step"], key)
        assert row["missing/teacher"] == row["missing/verifier"] == 0


def before_step(monkeypatch, number: int, action) -> None:
    """Call `action` when step `number`, counted from 0, begins."""
    step = loop.Loop._step

    def acting(self, current):
        if current == number:
            action()
        return step(self, current)

    monkeypatch.setattr(loop.Loop, "_step", acting)


@pytest.mark.parametrize("service", ["teacher", pytest.param("verifier", marks=pytest.mark.slow)])
def test_an_outage_that_ends_changes_no_metric(
    service, tmp_path, pocket_teacher, verifier, undisturbed, monkeypatch, capfd
):
    """The service is killed before the second step, and restarted on the same socket after the run's first notice."""
    url = f"unix:{tmp_path / 'service.sock'}"
    arguments = (*(TEACHER if service == "teacher" else ("--workers", "1")), "--grpc", url, "--http", "none")
    first, second = serving(service, *arguments), serving(service, *arguments)
    server = first.__enter__()
    noticed = threading.Event()
    update = outages._OutageNotice.update
    monkeypatch.setattr(outages._OutageNotice, "update", lambda self, reason: (update(self, reason), noticed.set()))
    restart = threading.Thread(target=lambda: (noticed.wait(60), second.__enter__()))

    def kill() -> None:
        server.process.kill()
        server.process.wait()
        restart.start()

    before_step(monkeypatch, 1, kill)
    urls = {"teacher": pocket_teacher.grpc, "verifier": verifier.grpc, service: url}
    try:
        run_train(config(tmp_path / "run", urls["teacher"], urls["verifier"]))
    finally:
        first.__exit__(None, None, None)
        restart.join()
        second.__exit__(None, None, None)
    monkeypatch.undo()
    assert_same(read_json_lines(tmp_path / "run" / "metrics.jsonl"), undisturbed(0))
    (outage,) = [span for span in read_json_lines(tmp_path / "run" / "timeline.jsonl") if span["lane"] == "outage"]
    assert outage["step"] == 2
    stderr = " ".join(capfd.readouterr().err.split())
    assert f"{service} {url} is away for" in stderr
    assert "waiting up to 600 s, then the run saves and stops (outage.wait)" in stderr
    assert f"{service} {url} answers again" in stderr


@pytest.mark.parametrize("ahead", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_outage_past_the_limit_stops_the_run_which_resumes_without_a_difference(
    ahead, tmp_path, verifier, undisturbed, monkeypatch
):
    """Batches generated ahead have their scores already, and are still used for policy updates."""
    done = 2 + ahead
    url = f"unix:{tmp_path / 'teacher.sock'}"
    arguments = (*TEACHER, "--grpc", url, "--http", "none")
    generate_ahead = f"rollout.ahead={ahead}"
    with serving("teacher", *arguments) as server:
        before_step(monkeypatch, 2, lambda: (server.process.kill(), server.process.wait()))
        message = rf"teacher {url} was away for \d+ s, and outage.wait is 1 s.*after step {done} is saved.*--resume"
        with pytest.raises(RunError, match=message):
            run_train(config(tmp_path / "run", url, verifier.grpc, "outage.wait=1", generate_ahead))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{done:06d}"]
    with serving("teacher", *arguments):
        run_train(config(tmp_path / "run", url, verifier.grpc, generate_ahead), resume=True)
    assert_same(read_json_lines(tmp_path / "run" / "metrics.jsonl"), undisturbed(ahead))


@pytest.mark.slow
def test_sigterm_while_a_service_is_away_saves_at_once(tmp_path, verifier):
    out, url = tmp_path / "run", f"unix:{tmp_path / 'teacher.sock'}"
    arguments = [
        *(sys.executable, "-m", "vold_trainer", "train", "pocket:vold", f"out={out}", f"teacher.url={url}"),
        *(f"verifier.url={verifier.grpc}", *SMALL, "steps=400", "checkpoints.every=1"),
    ]
    with serving("teacher", *TEACHER, "--grpc", url, "--http", "none") as server:
        process = programs.start(arguments, stderr=subprocess.PIPE, text=True)
        while not read_json_lines(out / "metrics.jsonl"):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        server.stop(signal.SIGKILL)
        while "is away for" not in (line := process.stderr.readline()):
            assert line, process.wait()
        process.terminate()
        assert process.wait(30) == 143
    done = len(read_json_lines(out / "metrics.jsonl"))
    assert (out / "checkpoints" / f"step-{done:06d}").is_dir()


@pytest.mark.slow
def test_a_local_service_that_died_is_not_waited_for(tmp_path, pocket_teacher, monkeypatch):
    """Only a new run would restart it. The verifier stands for both: it starts sooner."""
    children = []
    child_process = local.child_process

    @contextlib.contextmanager
    def recording(*arguments):
        with child_process(*arguments) as process:
            children.append(process)
            yield process

    monkeypatch.setattr(local, "child_process", recording)
    before_step(monkeypatch, 1, lambda: (children[0].kill(), children[0].wait()))
    with pytest.raises(RunError, match=r"(?s)'local:' ended with status -9.*after step 1 is saved"):
        run_train(config(tmp_path / "run", pocket_teacher.grpc, "local:"))


def test_missing_scores_are_masked_and_counted_and_stop_the_run_after_a_checkpoint(tmp_path, verifier, capfd):
    """A teacher with a too small maximum sequence rejects every item, which waiting cannot fix: the scores are missing,
    and no score becomes a zero. Its own sentence is wherever a score or a trace is missing.
    """
    said = r"16 teacher: InvalidArgument \(row '[\w-]+': INVALID_ARGUMENT: .*the teacher takes at most 4.*\)"
    with serving("teacher", *TEACHER, "--max-sequence", "4") as short:
        stops = rf"100% of the scores were missing for 2 steps in a row \({said}.*after step 2 is saved"
        with pytest.raises(RunError, match=stops):
            run_train(config(tmp_path / "run", short.grpc, verifier.grpc, "missing.patience=2"))
        overrides = [f"teacher.url={short.grpc}", "verifier=null", "keep=all", "data.limit=16"]
        traces = load(TracesConfig, Path("pocket:traces"), [f"out={tmp_path / 'traces.jsonl'}", *overrides])
        with pytest.raises(RunError, match=rf"not one of 16 traces was kept \({said}"):
            run_traces(traces)
    assert re.search(f"missing scores, masked: {said}", " ".join(capfd.readouterr().err.split()))
    for sample in read_json_lines(tmp_path / "run" / "rollouts.jsonl"):
        assert sample["missing"]["teacher"].startswith("INVALID_ARGUMENT: ")
    page = build_report([tmp_path / "run"], tmp_path / "report.html", title="t").read_text()
    assert page.count("no score of the teacher: INVALID_ARGUMENT: ") >= 3
    assert "the last of them: 16 teacher: InvalidArgument (row " in page
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["missing/teacher"] for row in rows] == [16, 16]
    for row in rows:
        assert re.fullmatch(said, row["missing/reasons"][0])
        assert row["loss/teacher"] == 0  # without scores, no loss
        assert "teacher/k2" not in row
        assert row["reward/mean"] is not None
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()


def test_one_ready_replica_ends_the_wait(pocket_teacher):
    nobody = "unix:/nowhere/teacher.sock"

    async def ready(*urls: str, every: bool) -> None:
        async with AsyncTeacherClient(list(urls)) as client:
            await client.ready(2, every=every)

    asyncio.run(ready(nobody, pocket_teacher.grpc, every=False))
    for urls, every in (([pocket_teacher.grpc, nobody], True), ([nobody, nobody], False)):
        with pytest.raises(Unavailable, match="nowhere"):
            asyncio.run(ready(*urls, every=every))
