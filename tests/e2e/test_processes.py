"""A run in one process and in two, left alone, killed and stopped: the same numbers.

The two processes are real, started by `accelerate launch` and `torchrun`, on the CPU.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import psutil
import pytest
import torch
from accelerate.utils import is_deepspeed_available
from paths import HELPERS
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.processes.ranks import DEVICE_TIMEOUT
from vold_trainer.runs.checkpoint import list_checkpoints
from vold_trainer.runs.export import run_export
from vold_trainer.training.train import run_train

RUNS_FILE = HELPERS / "launched_runs.py"
SPREAD_FILE = HELPERS / "spread_on_cpu.py"
STEPS = 8
# Three prompts over two processes, two optimiser steps a batch, odd micro-batches: nothing divides evenly. The rates
# stay small for these few steps, as Adam's first ones make differences of rounding large.
SMALL = (
    *("student.path=pocket:student", "rollout.prompts=3", "rollout.group=4", "rollout.max_tokens=24", "threads=1"),
    *("batch.size=8", "batch.micro=3", "data.limit=32", "optim.warmup_steps=8", "optim.lr=5e-5", "samples_every=3"),
)
OBJECTIVES = {
    "vold": "{name: vold}",
    "dapo": "{name: dapo, rounds: 2}",
    "gkd": "{name: gkd, traces: TRACES, student_share: 0.5}",
}


@pytest.fixture(scope="module")
def urls(pocket_teacher, verifier):
    return [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory, pocket_teacher):
    out = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    overrides = [f"out={out}", f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all", "data.limit=24"]
    run_traces(load(TracesConfig, Path("pocket:traces"), overrides))
    return out


@pytest.fixture(scope="module")
def runs(traces, urls):
    """The runs that one process and two processes make, by name: (command, overrides)."""
    by_name = {
        name: ("train", [*urls, *SMALL, f"objective={text.replace('TRACES', str(traces))}", "steps=3"])
        for name, text in OBJECTIVES.items()
    }
    by_name["gkd"][1].append("student.freeze=[vision, projector]")  # each parameter has a gradient in each step
    by_name["sft"] = (
        "sft",
        [
            f"traces={traces}",
            "steps=3",
            "batch=7",
            "micro=2",
            "threads=1",
            "optim.warmup_steps=0",
            "student.freeze=[vision]",
            "validation.share=0.3",
            "validation.every=2",
        ],
    )
    return by_name


@pytest.fixture(scope="module")
def alone(tmp_path_factory, urls):
    """The run that other tests kill and stop, undisturbed in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run_train(config(out, urls))
    return out


@pytest.fixture(scope="module")
def in_two(tmp_path_factory, runs):
    """(the folder of all runs in two processes, the finished launcher)."""
    root = tmp_path_factory.mktemp("two")
    runs_json = root / "runs.json"
    runs_json.write_text(json.dumps([(kind, str(root / name), overrides) for name, (kind, overrides) in runs.items()]))
    done = programs.run([sys.executable, str(RUNS_FILE), "runs", str(runs_json)], timeout=200)
    assert done.returncode == 0, done.stderr
    return root, done


def config(out: Path, urls: list[str], *overrides: str) -> TrainConfig:
    return load(
        TrainConfig,
        Path("pocket:vold"),
        [f"out={out}", *urls, *SMALL, f"steps={STEPS}", "checkpoints.every=2", *overrides],
    )


def launch(how: str, out: Path, urls: list[str], *overrides: str) -> subprocess.Popen:
    """Start `vold train` of the same run in a process group of its own: in one process, in two processes of `accelerate
    launch`, or in two forked processes.
    """
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    vold = ["-m", "vold_trainer"]
    start = {
        "alone": [sys.executable, *vold],
        "accelerate": [*launcher, *vold],
        "forked": [sys.executable, str(RUNS_FILE), "vold"],
    }[how]
    settings = [f"out={out}", *urls, *SMALL, f"steps={STEPS}", "checkpoints.every=2"]
    return programs.start(
        [*start, "train", "pocket:vold", *settings, *overrides],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(rows: int, out: Path, process: subprocess.Popen) -> None:
    """Wait until the run has written `rows` steps."""
    while len(read_json_lines(out / "metrics.jsonl")) < rows:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def assert_same(one: Path, other: Path, steps: int, tolerance: float = 1e-6) -> None:
    first, second = (read_json_lines(path / "metrics.jsonl") for path in (one, other))
    assert [row["step"] for row in first] == [row["step"] for row in second] == list(range(1, steps + 1))
    for a, b in zip(first, second, strict=True):
        for key in ("loss", "loss/policy", "loss/teacher", "reward/mean", "reward/std", "teacher/k2", "teacher/gap",
                    "teacher/k2_wrong", "length/mean", "groups/all_wrong", "missing/masked_positions", "lr",
                    "student/entropy", "dapo/rounds", "dapo/dropped_groups", "objective/on_policy",
                    "sane/alarms", "validation/loss"):  # fmt: skip
            assert (key in a) == (key in b), key
            if a.get(key) is not None:
                assert a[key] == pytest.approx(b[key], rel=tolerance, abs=tolerance), (a["step"], key)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance)
    weights = [load_file(path / "model" / "model.safetensors") for path in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        # The mean: where a gradient is nearly zero, its sign is rounding, and Adam's first steps follow the sign.
        assert (value.float() - weights[1][name].float()).abs().mean() < tolerance, name


@pytest.mark.parametrize("name", [*OBJECTIVES, "sft"])
def test_two_processes_compute_the_same_as_one(name, runs, in_two, tmp_path):
    kind, overrides = runs[name]
    if kind == "sft":
        run_sft(load(SftConfig, Path("pocket:sft"), [f"out={tmp_path / name}", *overrides]))
    else:
        run_train(load(TrainConfig, Path("pocket:vold"), [f"out={tmp_path / name}", *overrides]))
    assert_same(tmp_path / name, in_two[0] / name, 3)


def test_both_processes_generate_and_score_and_one_writes(in_two):
    out = in_two[0] / "vold"
    lanes = {row["lane"] for row in read_json_lines(out / "timeline.jsonl")}
    both = {"generate", "teacher", "verifier", "diagnose", "optimise", "sync", "checkpoint"}
    assert lanes - {"wait", "wait 1"} == both | {f"{lane} 1" for lane in both}
    assert json.loads((out / "run.json").read_text())["processes"] == 2


def test_an_error_of_one_process_ends_all_with_the_same_message(in_two):
    messages = [(in_two[0] / f"said-{rank}").read_text() for rank in (0, 1)]
    assert messages == [
        "VoldTrainerError: process 1 of 2: data.source is not there",
        "ReportedElsewhereError: data.source is not there",
    ]


def test_a_collective_operation_of_the_devices_has_the_time_that_was_set(in_two):
    assert [(in_two[0] / f"timeout-{rank}").read_text() for rank in (0, 1)] == [str(DEVICE_TIMEOUT)] * 2


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def run_sharded(environment: dict[str, str], *arguments: str) -> str:
    """Run `vold` in two processes, each with a part of the weights or of the moments. Returns what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SPREAD_FILE]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def train_in_two(strategy: str, out: Path, urls: list[str], settings: tuple[str, ...]) -> None:
    """`vold train` in two processes, under "ddp" or "fsdp2"."""
    if strategy == "fsdp2":
        run_sharded(FSDP2, "train", "pocket:vold", f"out={out}", *urls, *settings)
    else:
        process = launch("forked", out, urls, *settings)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_fsdp2_computes_the_same_and_resumes_in_one_process(tmp_path, urls, alone):
    """FSDP2 sums gradients in another order, and Adam's first steps amplify that: 1e-4 after some steps."""
    out = tmp_path / "run"
    environment = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    settings = [f"out={out}", *urls, *SMALL, f"steps={STEPS}", "checkpoints.every=2", "checkpoints.keep_last=9"]
    run_sharded(environment, "train", "pocket:vold", *settings)
    assert_same(alone, out, STEPS, tolerance=1e-4)
    for step in (6, 8):
        shutil.rmtree(out / "checkpoints" / f"step-{step:06d}")
    run_train(config(out, urls), resume=True)
    assert_same(alone, out, STEPS, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{r: 4, alpha: 8}"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_in_two_processes_the_reference_is_the_student_at_the_start(tmp_path, urls, strategy, lora):
    """Under FSDP2 its shards are put in the place of the student's: what is gathered of the one must not be used for
    the other.
    """
    settings = (*SMALL, "steps=3", "objective.kl_beta=0.5", "optim.lr=1e-3", "optim.warmup_steps=0")
    settings = (*settings, f"student.lora={lora}")
    run_train(config(tmp_path / "alone", urls, *settings))
    train_in_two(strategy, tmp_path / "two", urls, settings)
    alone, two = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("alone", "two"))
    assert alone[0]["loss/reference"] > 0, "of the step's second optimiser step"
    for left, right in zip(alone, two, strict=True):
        for name in ("loss", "loss/reference", "grad_norm"):
            assert left[name] == pytest.approx(right[name], rel=2e-3, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["student.freeze=[vision, projector, embeddings]", "student.lora={r: 4, alpha: 8}"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_in_two_processes_rows_of_added_tokens_are_trained_and_the_teacher_is_asked_for_less(
    tmp_path, urls, strategy, how
):
    """Rows beside a frozen matrix, a masked completion that was cut, and scores that are requested after the verdicts:
    each process decides about its own rollouts.
    """
    settings = (*SMALL, "steps=2", "optim.lr=1e-3", "optim.warmup_steps=0", "batch.size=0", "rollout.max_tokens=12")
    settings += ('student.add_tokens=[{"id": 110, "content": "<mark>"}]', how, "teacher.only=used")
    settings += ("objective={name: vold, truncated: mask, entropy_bonus: 0.01}",)
    run_train(config(tmp_path / "alone", urls, *settings))
    train_in_two(strategy, tmp_path / "two", urls, settings)
    alone, two = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("alone", "two"))
    for left, right in zip(alone, two, strict=True):
        for name in ("loss", "loss/teacher", "loss/entropy", "grad_norm", "teacher/sent", "length/truncated"):
            assert left[name] == pytest.approx(right[name], rel=2e-3, abs=1e-6), name
        assert 0 < left["teacher/sent"] < 1
        assert left["teacher/sent_tokens"] == right["teacher/sent_tokens"]
    models = [AutoModelForImageTextToText.from_pretrained(tmp_path / name / "model") for name in ("alone", "two")]
    rows = [model.get_input_embeddings().weight for model in models]
    assert len(rows[0]) == len(rows[1]) == 111
    base = AutoModelForImageTextToText.from_pretrained(checkpoint_path("student")).get_input_embeddings().weight
    for weight in rows:
        assert torch.equal(weight[:110], base[:110]), "the other rows are frozen"
    torch.testing.assert_close(rows[1][110], rows[0][110], rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_fsdp2_without_mixed_precision_has_the_numbers_of_autocast(tmp_path, urls):
    """Under student.compute norms and the residual stream are float32 in each strategy; under accelerate's mixed
    precision FSDP2 computes them in bfloat16, and the first line of the run says so.
    """
    settings = (*SMALL, "steps=1", "student.compute=bfloat16", "student.freeze=[]", "batch.size=0")
    process = launch("forked", tmp_path / "ddp", urls, *settings)  # not alone: each process decodes its own batch
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    run_sharded(FSDP2, "train", "pocket:vold", f"out={tmp_path / 'same'}", *urls, *settings)
    settings = (*settings[:-3], "student.freeze=[]", "batch.size=0")
    mixed = {**FSDP2, "ACCELERATE_MIXED_PRECISION": "bf16"}
    told = run_sharded(mixed, "train", "pocket:vold", f"out={tmp_path / 'other'}", *urls, *settings)
    assert "FSDP2 with mixed_precision bf16: norms and the residual stream are bf16 too" in " ".join(told.split())
    (ddp,), (same,) = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("ddp", "same"))
    # FSDP2 computes each prompt for each of its completions, which moves last digits of bfloat16.
    for name, tolerance in (("teacher/k2", 2e-4), ("student/entropy", 1e-2)):
        assert same[name] == pytest.approx(ddp[name], rel=tolerance), name


@pytest.fixture(params=["2", "3"])
def deepspeed(request):
    """Stage 2 shards gradients and moments, stage 3 the weights too."""
    if not is_deepspeed_available():
        pytest.skip("DeepSpeed is not installed")
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": request.param}


@pytest.mark.slow
def test_deepspeed_computes_the_same(deepspeed, tmp_path, urls, alone):
    out = tmp_path / "run"
    run_sharded(deepspeed, "train", "pocket:vold", f"out={out}", *urls, *SMALL, f"steps={STEPS}")
    assert_same(alone, out, STEPS, tolerance=1e-4)


@pytest.mark.slow
def test_deepspeed_resumes(deepspeed, tmp_path, traces):
    settings = [f"traces={traces}", "steps=4", "batch=7", "micro=2", "threads=1", "checkpoints.every=2"]
    run_sft(load(SftConfig, Path("pocket:sft"), [f"out={tmp_path / 'one'}", *settings]))
    run_sharded(deepspeed, "sft", "pocket:sft", f"out={tmp_path / 'two'}", *settings)
    assert_same(tmp_path / "one", tmp_path / "two", 4, tolerance=1e-4)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-000004")
    run_sharded(deepspeed, "sft", "pocket:sft", f"out={tmp_path / 'two'}", *settings, "--resume")
    assert_same(tmp_path / "one", tmp_path / "two", 4, tolerance=1e-4)


@pytest.mark.slow
def test_a_run_in_two_processes_survives_kill_and_stop(tmp_path, urls, alone):
    """Killed in the middle, resumed, stopped by SIGTERM at the launcher, and resumed in one process."""
    out = tmp_path / "run"
    process = launch("accelerate", out, urls)
    wait_for(3, out, process)
    workers = psutil.Process(process.pid).children(recursive=True)  # each in a session of its own
    os.killpg(process.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers)
    process.wait()
    assert list_checkpoints(out)
    shutil.copytree(out, tmp_path / "copy")
    process = launch("forked", out, urls, "--resume")
    wait_for(5, out, process)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    done = len(read_json_lines(out / "metrics.jsonl"))
    assert 5 <= done <= STEPS, stderr
    assert list_checkpoints(out)[-1].step == done, stderr
    assert stderr.count("saving after this step") <= 1
    run_train(config(out, urls), resume=True)
    assert_same(alone, out, STEPS)
    run_train(config(tmp_path / "copy", urls), resume=True)  # straight from two processes to one
    assert_same(alone, tmp_path / "copy", STEPS)


@pytest.mark.slow
def test_a_run_in_one_process_survives_kill(tmp_path, urls, alone):
    out = tmp_path / "run"
    process = launch("alone", out, urls, "checkpoints.keep_best=1", "checkpoints.window=1")
    wait_for(3, out, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = list_checkpoints(out)[-1]
    (newest.path.parent / "partial-000099").mkdir()  # as a kill while saving leaves it
    half = shutil.copytree(newest.path, newest.path.with_name("step-000077"))  # a truncated file, as after a crash
    weights = half / "learning.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    run_train(config(out, urls, "checkpoints.keep_best=1", "checkpoints.window=1"), resume=True)
    assert_same(alone, out, STEPS)
    names = {path.name for path in (out / "checkpoints").iterdir()}
    scores = {row["step"]: row["reward/mean"] for row in read_json_lines(out / "metrics.jsonl") if row["step"] % 2 == 0}
    best = max(scores, key=lambda step: (scores[step], step))
    assert names == {f"step-{step:06d}" for step in {STEPS - 2, STEPS, best}}
    assert run_export(out, "best", tmp_path / "best") == best
    for folder in (tmp_path / "best", out / "best"):
        exported = AutoModelForImageTextToText.from_pretrained(folder)
        saved = next(checkpoint for checkpoint in list_checkpoints(out) if checkpoint.step == best).tensors("learning")
        parameters = dict(exported.named_parameters())
        assert all(torch.equal(parameters[name], value) for name, value in saved.items())
