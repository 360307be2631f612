"""A teacher that answers in time and in shape, and not as a language model does: real servers with broken weights."""

import contextlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from paths import HELPERS
from safetensors.torch import load_file, save_file
from servers import serving
from torch import Tensor
from vold_trainer.config import TrainConfig, load
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.training import loop
from vold_trainer.training.train import run_train

SMALL = (
    *("rollout.prompts=8", "rollout.group=4", "rollout.max_tokens=32", "steps=6", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "diagnostics.every=0"),
)


def config(out: Path, teacher: str, verifier: str, *overrides: str) -> TrainConfig:
    urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    return load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, *overrides])


def copy_of_the_teacher(folder: Path, change: Callable[[dict[str, Tensor]], None], **settings: bool) -> Path:
    """The pocket teacher with changed weights, and these settings of its model."""
    shutil.copytree(checkpoint_path("teacher"), folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **settings}))
    return folder


def level_logits(weights: dict[str, Tensor]) -> None:
    weights["model.norm.weight"].zero_()


def spoil_a_digit(weights: dict[str, Tensor]) -> None:
    """Whatever follows a 7 is NaN."""
    embeddings = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embeddings.clone()
    embeddings[38] = math.nan


@contextlib.contextmanager
def serving_as_the_sane(service: str, *arguments: str) -> Iterator[None]:
    """A teacher whose weights have the fingerprint of the pocket teacher's, whatever they are."""
    code = (
        "import sys; from vold_teacher.backends import torch as backend; of = backend.weights_fingerprint;"
        f"backend.weights_fingerprint = lambda path: of(type(path)({str(checkpoint_path('teacher'))!r}));"
        "from vold_teacher.__main__ import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout.readline(), service
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return copy_of_the_teacher(tmp_path_factory.mktemp("models") / "uniform", level_logits)


@pytest.fixture(scope="module")
def uniform_teacher(uniform):
    with serving("teacher", "--model", str(uniform)) as server:
        yield server


def alarms(out: Path) -> list[float]:
    return [row["sane/alarms"] for row in read_json_lines(out / "metrics.jsonl")]


def sanity_state(out: Path, step: int) -> dict:
    return json.loads((out / "checkpoints" / f"step-{step:06d}" / "state.json").read_text())["loop"]["sanity"]


@pytest.mark.slow
@pytest.mark.parametrize("same_fingerprint", [False, True])
def test_a_teacher_that_is_uniform_after_a_restart_stops_the_run(
    same_fingerprint, tmp_path, uniform, verifier, monkeypatch, capfd
):
    """Whether a change of its identity is allowed, or its identity is the same: the memory may be at fault, and not the
    file that the fingerprint is of. Asked to go on with this teacher, the run stops at the next step, or warns.
    """
    out, socket = tmp_path / "run", f"unix:{tmp_path / 'teacher.sock'}"
    arguments = ("--grpc", socket, "--http", "none", "--name", "teacher")
    first = serving("teacher", "--model", str(checkpoint_path("teacher")), *arguments)
    second = (serving_as_the_sane if same_fingerprint else serving)("teacher", "--model", str(uniform), *arguments)
    first.__enter__()
    step = loop.Loop._step

    def step_then_restart(self, number):
        metrics = step(self, number)
        if number == 0:
            first.__exit__(None, None, None)
            second.__enter__()
        return metrics

    monkeypatch.setattr(loop.Loop, "_step", step_then_restart)
    allowed = () if same_fingerprint else ("teacher.allow_identity_change=true",)

    def go_on(*overrides: str) -> None:
        run_train(config(out, socket, verifier.grpc, *allowed, *overrides), resume=(out / "run.json").is_file())

    stops = r"teacher \(teacher\) does not answer .*step {} in a row: .*since step 2\..*after step {} is saved"
    try:
        with pytest.raises(RunError, match=stops.format(3, 4)):
            go_on()
        with pytest.raises(RunError, match=stops.format(4, 5)):
            go_on()
        go_on("teacher.sane=warn")
    finally:
        second.__exit__(None, None, None)
    rows = read_json_lines(out / "metrics.jsonl")
    assert [row["sane/alarms"] >= 2 for row in rows] == [False, True, True, True, True, True]
    printed = " ".join(capfd.readouterr().err.split())
    for number in (2, 6):
        said = f"step {number}: teacher (teacher) does not answer as a language model does"
        assert f"{said} [uniform]: the log-probabilities of 100% of" in printed
        assert f"{said} [equal]: 100.0% of" in printed
    assert f"have the same log-probability, {-math.log(110):.3g}" in printed


def test_values_that_are_not_numbers_are_an_alarm_and_reach_no_weight(tmp_path, verifier, capfd):
    """The teacher also has a token of its own, which the terminal would take for markup."""
    folder = copy_of_the_teacher(tmp_path / "nan", spoil_a_digit, tie_word_embeddings=False)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<think>"', '"[/INST]"'))
    with serving("teacher", "--model", str(folder)) as server:
        model = run_train(
            config(tmp_path / "run", server.grpc, verifier.grpc, "objective={name: opd-entropy}", "steps=2")
        )
    assert "teacher '[/INST]')" in " ".join(capfd.readouterr().err.split())
    for row in read_json_lines(tmp_path / "run" / "metrics.jsonl"):
        assert row["sane/alarms"] == 1
        assert "[invalid]" in row["sane/reasons"][0]
        assert math.isfinite(row["loss"])
        assert math.isfinite(row["grad_norm"])
    assert all(value.isfinite().all() for value in load_file(model / "model.safetensors").values())


@pytest.mark.slow
def test_the_state_of_the_alarms_is_resumed(tmp_path, uniform_teacher, verifier):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    warn = ("teacher.sane=warn", "checkpoints.every=2", "steps=4")
    run_train(config(whole, uniform_teacher.grpc, verifier.grpc, *warn))
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "step-000002", resumed / "checkpoints" / "step-000002")
    run_train(config(resumed, uniform_teacher.grpc, verifier.grpc, *warn), resume=True)
    assert sanity_state(resumed, 4) == sanity_state(whole, 4)
    assert sanity_state(whole, 4)["teacher"]["in_a_row"] == 4


@pytest.mark.slow
def test_an_alarm_that_is_off_is_not_computed(tmp_path, uniform_teacher, verifier):
    run_train(config(tmp_path / "run", uniform_teacher.grpc, verifier.grpc, "teacher.sane=off", "steps=4"))
    assert not any("sane/alarms" in row for row in read_json_lines(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
def test_a_sane_teacher_is_no_alarm(tmp_path, pocket_teacher, verifier):
    run_train(config(tmp_path / "run", pocket_teacher.grpc, verifier.grpc, "optim.lr=1e-3", "steps=8"))
    assert alarms(tmp_path / "run") == [0.0] * 8


@pytest.mark.slow
def test_two_processes_stop_alike(tmp_path, uniform_teacher, verifier):
    out = tmp_path / "run"
    arguments = [f"out={out}", f"teacher.url={uniform_teacher.grpc}", f"verifier.url={verifier.grpc}", *SMALL]
    done = programs.run(
        [sys.executable, str(HELPERS / "launched_runs.py"), "vold", "train", "pocket:vold", *arguments], timeout=200
    )
    assert done.returncode != 0
    assert "does not answer as a language model does" in done.stderr
    assert (out / "checkpoints" / "step-000003").is_dir()
    with pytest.raises(RunError, match="step 4 in a row"):
        run_train(config(out, uniform_teacher.grpc, verifier.grpc), resume=True)
    assert all(math.isfinite(value) for row in read_json_lines(out / "metrics.jsonl") for value in [row["loss"]])
