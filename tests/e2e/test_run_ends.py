"""Whatever ends a run, nothing that was learned is lost: the last whole step is saved, or the newest checkpoint stays,
and the run that goes on from there equals the undisturbed one.
"""

import subprocess
import sys
import threading
from pathlib import Path

import faults
import programs
import pytest
import torch
from safetensors.torch import load_file
from vold_client import InvalidArgument
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.errors import ResumeRefusedError, RunError, UsageError
from vold_trainer.files import read_json_lines
from vold_trainer.processes import failure
from vold_trainer.runs.checkpoint import latest_checkpoint, list_checkpoints
from vold_trainer.training.train import run_train

TINY = (
    *("rollout.prompts=2", "rollout.group=2", "rollout.max_tokens=8", "steps=4", "data.limit=16", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "batch.size=2", "batch.micro=2"),
    *("diagnostics.every=2", "diagnostics.rollouts=2", "optim.schedule=cosine"),
)
NEVER = ("checkpoints.every=0", "checkpoints.minutes=0")
FAULTS_FILE = Path(faults.__file__)
SLOW = pytest.mark.slow


def settings(out, teacher, verifier, *overrides: str) -> list[str]:
    return [f"out={out}", f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}", *TINY, *NEVER, *overrides]


@pytest.fixture
def config(tmp_path, pocket_teacher, verifier):
    def make(*overrides: str, out: Path = tmp_path / "run") -> TrainConfig:
        return load(TrainConfig, Path("pocket:vold"), settings(out, pocket_teacher, verifier, *overrides))

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pocket_teacher, verifier) -> Path:
    """The undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_train(load(TrainConfig, Path("pocket:vold"), settings(out, pocket_teacher, verifier)))
    return out


def assert_same(out: Path, whole: Path, processes: int = 1) -> None:
    """Up to rounding, which several processes do in another order."""
    rows, expected = (read_json_lines(folder / "metrics.jsonl") for folder in (out, whole))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for key in ("loss", "reward/mean", "teacher/k2", "grad_norm", "length/mean", "lr", "optim/skipped"):
            assert row[key] == pytest.approx(other[key], rel=processes * 1e-5, abs=1e-6), (row["step"], key)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (out, whole))
    for name, value in second.items():
        difference = (first[name] - value).abs()
        # The mean: where a gradient is nearly zero, its sign is rounding, and Adam's first steps follow the sign.
        assert (difference.max() if processes == 1 else difference.mean()) < 2e-6, name


# With batch.size=2 a step has two optimiser steps, of one micro-batch each: the fault is before the first.
@pytest.mark.parametrize(
    ("point", "number", "error", "raised", "step"),
    [
        ("generate", 3, ArithmeticError("of a kind that nobody knows"), ArithmeticError, 2),
        pytest.param("generate", 1, ValueError("nothing was learned yet"), ValueError, 0, marks=SLOW),
        pytest.param("scores", 5, InvalidArgument("the run is at fault"), RunError, 2, marks=SLOW),
        pytest.param(
            *("backward", 5, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), RunError, 2),
            marks=SLOW,
        ),
        pytest.param("backward", 5, RuntimeError("Allocator: can't allocate memory"), RunError, 2, marks=SLOW),
        pytest.param("diagnose", 2, RunError("the teacher changed"), RunError, 2, marks=SLOW),
        pytest.param("sync", 2, OSError("No space left on device"), RunError, 2, marks=SLOW),
        pytest.param("export", 1, OSError("No space left on device"), RunError, 4, marks=SLOW),
    ],
)
def test_an_error_outside_an_update_saves_the_last_whole_step(
    point, number, error, raised, step, config, whole, monkeypatch
):
    faults.at(point, number, lambda: faults.raise_(error), monkeypatch.setattr)
    with pytest.raises(raised) as ended:
        run_train(config())
    said = "\n".join([str(ended.value), *getattr(ended.value, "__notes__", ())])
    assert f"The student after step {step} is saved" in said
    assert str(error).rstrip(".")[:30] in said
    if raised is RunError and not isinstance(error, RunError | InvalidArgument | OSError):
        assert "lower batch.micro" in said
    assert latest_checkpoint(config().out).step == step
    run_train(config(), resume=True)
    assert_same(config().out, whole)


@pytest.mark.parametrize(
    ("number", "newest"), [pytest.param(5, 2, marks=SLOW), (6, 2), pytest.param(2, None, marks=SLOW)]
)
def test_an_error_within_an_update_leaves_the_newest_checkpoint(number, newest, config, whole, monkeypatch):
    """Before the step's first optimiser step has returned, and before its second."""
    faults.at("optimise", number, lambda: faults.raise_(ArithmeticError("a fault")), monkeypatch.setattr)
    with pytest.raises(ArithmeticError) as ended:
        run_train(config("checkpoints.every=2"))
    (note,) = ended.value.__notes__
    assert f"within the update of step {(number + 1) // 2}, which is lost" in note
    assert ("newest checkpoint is of step 2" if newest else "There is no checkpoint yet") in note
    monkeypatch.undo()
    run_train(config(), resume=True)
    assert_same(config().out, whole)


@SLOW
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(config, whole, monkeypatch):
    """The disk is full: three attempts, of the second checkpoint and of the last whole step."""
    for number in (3, 5):
        faults.at("tensors", number, lambda: faults.raise_(OSError("No space left on device")), monkeypatch.setattr)
    with pytest.raises(RunError, match=r"No space left.*after step 2 (failed too|is saved)"):
        run_train(config("checkpoints.every=1"))
    monkeypatch.undo()
    run_train(config(), resume=True)
    assert_same(config().out, whole)


@SLOW
def test_a_run_that_diverges_stops_with_weights_from_before_and_goes_on_from_an_earlier_step(config, whole, capsys):
    """The rate is far too high from step 3 on: its gradients are not finite, which the weights never see."""
    out = config().out
    run_train(config("checkpoints.every=1", "checkpoints.keep_last=9"))
    high = ("checkpoints.every=1", "checkpoints.keep_last=9", "steps=12", "optim.lr=1e18", "optim.max_skipped=3")
    with pytest.raises(RunError, match=r"(logits are not numbers .*training has diverged|not finite in 3 optimiser)"):
        run_train(config(*high), resume=True, step="2")
    for checkpoint in list_checkpoints(out):
        assert all(tensor.isfinite().all() for tensor in checkpoint.tensors("learning").values())
    run_train(config(), resume=True, step="2")
    assert_same(out, whole)
    assert "the checkpoints after step 2 are kept in" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("kind", ["once", pytest.param("for ever", marks=SLOW)])
def test_a_gradient_that_is_not_finite_is_skipped_and_shown(kind, config, whole, monkeypatch, capsys):
    from vold_trainer.processes.wrapping import PreparedModel

    backward, calls = PreparedModel.backward, []

    def with_nan(self, loss):
        calls.append(loss)
        backward(self, loss * float("nan") if len(calls) == 5 or (kind == "for ever" and len(calls) > 5) else loss)

    monkeypatch.setattr(PreparedModel, "backward", with_nan)
    if kind == "once":
        run_train(config("optim.max_skipped=2"))
        rows = read_json_lines(config().out / "metrics.jsonl")
        assert [row["optim/skipped"] for row in rows] == [0, 0, 1, 0]
        assert "step 3: the gradient's norm is nan: the optimiser step is skipped" in capsys.readouterr().err
        return
    with pytest.raises(RunError, match=r"not finite in 4 optimiser steps in a row.*after step 4 is saved"):
        run_train(config("steps=9", "optim.max_skipped=3"))
    monkeypatch.undo()
    run_train(config(), resume=True)
    assert all(value.isfinite().all() for value in load_file(config().out / "model" / "model.safetensors").values())


KILLS = [
    ("optimise", 6),
    *(
        pytest.param(point, number, marks=SLOW)
        for point, number in (
            *(("generate", 3), ("scores", 5), ("backward", 6), ("metrics", 3), ("sync", 3)),
            *(("tensors", 6), ("flush", 14), ("prune", 3), ("export", 1)),
        )
    ),
]


def killed(how: str, point: str, number: str, rank: str, arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FAULTS_FILE), how, point, number, rank, *arguments]
    return programs.run(command, timeout=120)


@pytest.mark.parametrize(("point", "number"), KILLS)
def test_a_run_that_is_killed_in_any_phase_of_a_step_goes_on_from_its_newest_checkpoint(
    point, number, config, whole, tmp_path, pocket_teacher, verifier
):
    arguments = ["train", "pocket:vold", *settings(tmp_path / "run", pocket_teacher, verifier, "checkpoints.every=1")]
    done = killed("run", point, str(number), "0", arguments)
    assert done.returncode == -9, done.stderr
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert newest.step in (2, 3, 4)
    run_train(config(), resume=True)
    assert_same(tmp_path / "run", whole)


# (point, number, process, checkpoints.every, the step from which the run goes on)
TWO = [
    pytest.param("backward", "error:5", "1", 0, 2, id="an error of one alone", marks=SLOW),
    pytest.param("generate", "error:3", "1", 0, 2, id="an error that they agree on", marks=SLOW),
    pytest.param("backward", "error:5", "0", 0, 2, id="an error of the main one alone", marks=SLOW),
    pytest.param("optimise", "error:6", "1", 1, 2, id="an error within the update", marks=SLOW),
    pytest.param("backward", "5", "1", 0, 2, id="one killed", marks=SLOW),
    pytest.param("tensors", "3", "0", 1, 1, id="the main one killed while it saves", marks=SLOW),
    pytest.param("optimise", "6", "0", 1, 2, id="the main one killed within the update", marks=SLOW),
]


@pytest.mark.parametrize(("point", "number", "rank", "every", "step"), TWO)
def test_one_of_two_processes_ends_both_and_the_run_goes_on(
    point, number, rank, every, step, config, whole, tmp_path, pocket_teacher, verifier
):
    """Data parallel: each has all weights, so that the main one saves the last whole step if it is still there."""
    overrides = settings(tmp_path / "run", pocket_teacher, verifier, f"checkpoints.every={every}")
    done = killed("two", point, number, rank, ["train", "pocket:vold", *overrides])
    assert done.returncode != 0
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None, done.stderr
    assert newest.step == step, done.stderr
    if number.startswith("error"):
        assert "a fault" in done.stderr
    run_train(config(), resume=True)
    assert_same(tmp_path / "run", whole, processes=2)


def test_a_process_that_does_not_end_after_another_failed_is_ended(monkeypatch):
    store, ended = torch.distributed.HashStore(), threading.Event()
    monkeypatch.setattr(failure, "AGREEMENT_SECONDS", 0.0)
    monkeypatch.setattr(failure, "LOOK_SECONDS", 0.01)
    said: list[str] = []

    def end(message: str) -> None:
        said.append(message)
        ended.set()

    stuck = failure.FailureWatch(store, 0, end=end)
    failed = failure.FailureWatch(store, 1, end=lambda message: None)
    assert not said
    failed.announce("process 1 of 2: ArithmeticError: a fault")
    assert ended.wait(60)
    assert said == [
        "process 1 has failed (process 1 of 2: ArithmeticError: a fault), and the run has not ended since: ending it"
    ]
    stuck.close()
    failed.close()


@pytest.fixture(scope="module")
def traces(tmp_path_factory, pocket_teacher, verifier):
    out = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    run_traces(load(TracesConfig, Path("pocket:traces"), [f"out={out}", *urls, "data.limit=24"]))
    return out


def test_the_cold_start_saves_its_last_whole_step_too(tmp_path, traces, monkeypatch):
    def config(name: str, *overrides: str) -> SftConfig:
        small = (f"traces={traces}", "steps=4", "batch=6", "threads=1", *NEVER, *overrides)
        return load(SftConfig, Path("pocket:sft"), [f"out={tmp_path / name}", *small])

    run_sft(config("whole"))
    faults.at("sft", 3, lambda: faults.raise_(MemoryError()), monkeypatch.setattr)
    with pytest.raises(RunError, match=r"out of memory: MemoryError .*\. The student after step 2 is saved"):
        run_sft(config("run"))
    run_sft(config("run"), resume=True)
    rows, expected = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "whole"))
    assert [(row["step"], row["loss"], row["lr"]) for row in rows] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6), row["lr"]) for row in expected
    ]
    with pytest.raises(UsageError, match=r"holds a run, 4 of 4 steps: go on with it with --resume, delete it with"):
        run_sft(config("run"))
    with pytest.raises(ResumeRefusedError, match=r"batch: 6 -> 5 \(it decides which traces a step has\)"):
        run_sft(config("run", "batch=5"), resume=True)
    run_sft(config("run", "steps=1"), overwrite=True)
    assert [row["step"] for row in read_json_lines(tmp_path / "run" / "metrics.jsonl")] == [1]
    assert not (tmp_path / "run" / "checkpoints").exists()
