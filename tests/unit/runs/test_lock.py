"""Two processes never write the same `out`: the second ends with a message, before it loads anything."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vold_trainer.coldstart import run_sft, run_traces
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig
from vold_trainer.errors import UsageError
from vold_trainer.evaluation import run_eval
from vold_trainer.lock import check_free, holding
from vold_trainer.training.train import run_train

NOWHERE = {"path": "/no/student"}
ABSENT = {"url": "local:/no/teacher"}
COMMANDS = {
    "train": (run_train, "run", lambda out: TrainConfig(out=out / "run", student=NOWHERE)),
    "sft": (run_sft, "run", lambda out: SftConfig(out=out / "run", student=NOWHERE, traces="/no/traces")),
    "eval": (run_eval, "eval", lambda out: EvalConfig(out=out / "run", student=NOWHERE, data=[{"limit": 1}])),
    "traces": (
        run_traces,
        "traces",
        lambda out: TracesConfig(out=out / "traces.jsonl", teacher={"url": "local:/no/teacher"}),
    ),
}
HOLD = """
import sys
from pathlib import Path
from vold_trainer.lock import holding
with holding(Path({out!r}), {kind!r}):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path):
    """(the command, its lock, its config): student or teacher is nowhere, so that nothing can be loaded."""
    run, kind, config = COMMANDS[request.param]
    return run, kind, config(tmp_path)


def hold_elsewhere(out, kind) -> subprocess.Popen:
    code = HOLD.format(out=str(out), kind=kind)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def files(folder) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_second_process_is_refused_until_the_first_is_gone(command, tmp_path):
    run, kind, config = command
    with hold_elsewhere(config.out, kind) as first:
        for refused in (lambda: run(config), lambda: check_free(config.out, kind)):
            with pytest.raises(UsageError) as raised:
                refused()
            assert f"out {str(config.out)!r} is in use by process {first.pid} on " in str(raised.value)
            assert "wait until it ends, stop it, or set another out" in str(raised.value)
        first.kill()
    assert len(files(tmp_path)) == 1  # what a killed process leaves keeps nobody out
    check_free(config.out, kind)
    with pytest.raises(UsageError, match="/no/"):
        run(config)
    assert files(tmp_path) == []


def test_an_evaluation_may_write_into_the_folder_of_a_run(tmp_path):
    with (
        holding(tmp_path, "run"),
        holding(tmp_path, "eval"),
        pytest.raises(UsageError, match=rf"is in use by process {os.getpid()} on"),
    ):
        check_free(tmp_path, "run")


def test_the_processes_of_a_launch_are_one_owner(tmp_path, monkeypatch):
    with holding(tmp_path, "run"):
        monkeypatch.setenv("RANK", "1")
        with holding(tmp_path, "run"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UsageError, match="is in use"):
            check_free(tmp_path, "run")


@pytest.mark.parametrize("kind", ["run", "eval", "traces"])
def test_a_look_leaves_no_folder(kind, tmp_path):
    check_free(tmp_path / "new" / "out", kind)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_gets_a_warning(tmp_path, caplog, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), holding(tmp_path, "run"):
        pass
    assert "cannot be locked ([Errno 37] No locks available): nothing keeps another process from writing" in caplog.text


def test_a_place_that_cannot_be_written_to_gets_a_warning(caplog):
    with caplog.at_level(logging.WARNING), holding(Path("/proc/no/run"), "run"):
        pass
    assert "cannot be locked" in caplog.text
