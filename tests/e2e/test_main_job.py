"""The whole recipe, small: every stage with real services over the real protocol."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from safetensors.torch import load_file
from servers import serving
from vold_client import TeacherClient
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.errors import HandshakeError, RunError, UsageError
from vold_trainer.evaluation import run_eval
from vold_trainer.experiments import ablation, studies
from vold_trainer.experiments.ablation import run_ablation
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces
from vold_trainer.training.train import run_train

SMALL = ("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=40", "steps=2", "data.limit=64", "threads=1")


def train_config(out: Path, teacher: str, verifier: str, *overrides: str, name: str = "vold") -> TrainConfig:
    urls = [f"verifier.url={verifier}", *([f"teacher.url={teacher}"] if name == "vold" else [])]
    return load(
        TrainConfig, Path(f"pocket:{name}"), [f"out={out}", "student.path=pocket:student", *urls, *SMALL, *overrides]
    )


def test_demo_runs_every_stage_and_writes_its_summary(tmp_path, pocket_teacher, verifier):
    small = ("data.limit=64", "sft:steps=3", "train:steps=2", "train:rollout.prompts=4", "train:rollout.group=4")
    overrides = (*(f"{kind}:{small[0]}" for kind in ("traces", "train")), *small[1:])
    sets = tuple(f"eval:data.{index}.limit=12" for index in (0, 1))
    command = [sys.executable, "-m", "vold_trainer", "demo", "--out", str(tmp_path / "demo")]
    command += ["--teacher-url", pocket_teacher.grpc, "--verifier-url", verifier.grpc]
    command += [part for override in (*overrides, *sets) for part in ("--set", override)]
    done = programs.run(command)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(written["stages"]) == {"base", "sft", "grpo", "vold", "vold-candidates"}
    for stage in written["stages"].values():
        assert stage["n"] == 12
        assert 0 <= stage["text_accuracy"] <= 1
        assert 0 <= stage["image_accuracy"] <= 1
    assert written["missing_scores"] == 0
    assert written["seconds"] > 0
    with TeacherClient(pocket_teacher.grpc) as client:
        assert written["teacher"]["weights_fingerprint"] == client.info().identity.weights_fingerprint
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "SFT" in page
    assert len(page) > 100_000
    lines = (done.stdout + done.stderr).splitlines()
    assert "report.html" in "".join(lines)  # a long path is broken over several lines
    unwanted = re.compile(r"warning|error|traceback|exception|deprecated|never awaited|ignored in", re.I)
    assert [line for line in lines if unwanted.search(line)] == [], "a message about which a user can do nothing"


@pytest.mark.slow
def test_the_ablation_runs_rows_in_parallel_and_only_missing_ones(tmp_path, pocket_teacher, verifier, monkeypatch):
    monkeypatch.setattr(ablation, "TEACHERS", {studies.TEACHER: pocket_teacher.grpc})
    monkeypatch.setattr(ablation, "VERIFIER", verifier.grpc)
    study = replace(studies.STUDIES["components"], problems=4)
    monkeypatch.setattr(studies, "STUDIES", {**studies.STUDIES, "components": study})
    monkeypatch.setattr(ablation, "STUDIES", studies.STUDIES)
    overrides = (
        *("traces:data.limit=48", "sft:steps=2"),
        *("train:steps=1", "train:rollout.prompts=2", "train:rollout.group=2", "train:data.limit=16"),
    )
    results = tmp_path / "results" / "test.jsonl"

    def run(seeds: tuple[int, ...], workers: int) -> dict:
        return run_ablation(
            tmp_path / "runs",
            tmp_path / "results",
            study="components",
            seeds=seeds,
            workers=workers,
            only=["base", "grpo", "vold"],
            overrides=overrides,
        )

    first = run((5,), workers=2)
    assert [row["name"] for row in first["rows"]] == ["base", "grpo", "vold"]
    assert first["n"] == 4
    lines = read_json_lines(results)
    assert [(line["row"], line["seed"]) for line in lines] == [("base", 5), ("grpo", 5), ("vold", 5)]
    assert all(0 <= line["image_misread"] <= 1 for line in lines)
    shutil.rmtree(tmp_path / "runs")  # a result stays without the run's folder
    both = run((5, 6), workers=1)
    assert all([seed["seed"] for seed in row["seeds"]] == [5, 6] for row in both["rows"])
    assert both["rows"][2]["minus"]["text_accuracy"]["n"] == 2
    assert not (tmp_path / "runs" / "seed-5").exists()
    assert [line for line in read_json_lines(results) if line["seed"] == 5] == lines
    assert "VOLD, the paper's form" in (tmp_path / "results" / "components.md").read_text()


def test_training_updates_the_student_from_scores_of_the_services(tmp_path, pocket_teacher, verifier):
    model = run_train(train_config(tmp_path / "vold", pocket_teacher.grpc, verifier.grpc))
    before = load_file(checkpoint_path("student") / "model.safetensors")
    after = load_file(model / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed
    assert not any("visual" in name for name in changed), "the vision tower is frozen"
    rows = read_json_lines(tmp_path / "vold" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["missing/teacher"] == row["missing/verifier"] == 0 for row in rows)
    assert all(row["teacher/k2"] > 0 for row in rows)
    lanes = {row["lane"] for row in read_json_lines(tmp_path / "vold" / "timeline.jsonl")}
    lanes -= {"wait"}  # only if a score is late
    assert lanes == {"generate", "teacher", "verifier", "diagnose", "optimise", "sync", "checkpoint"}
    sample = read_json_lines(tmp_path / "vold" / "rollouts.jsonl")[0]
    assert len(sample["tokens"]) == len(sample["student_logprobs"]) == len(sample["teacher_logprobs"])
    assert load_student(load(EvalConfig, Path("pocket:eval"), [f"student.path={model}"]).student).model is not None


def test_scoring_starts_while_the_student_still_generates(tmp_path, pocket_teacher, verifier):
    config = train_config(
        tmp_path / "run", pocket_teacher.grpc, verifier.grpc, "rollout.prompts=16", "rollout.group=8",
        "rollout.max_tokens=80", "steps=1",
    )  # fmt: skip
    run_train(config)
    spans = read_json_lines(tmp_path / "run" / "timeline.jsonl")
    generated = next(span["end"] for span in spans if span["lane"] == "generate")
    for lane in ("teacher", "verifier"):
        assert min(span["start"] for span in spans if span["lane"] == lane) < generated


def test_the_same_seed_gives_the_same_run_and_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path, pocket_teacher, verifier
):
    def run(name: str, *overrides: str, resume: bool = False) -> dict[str, torch.Tensor]:
        config = train_config(
            tmp_path / name, pocket_teacher.grpc, verifier.grpc, "steps=4", "optim.lr=1e-3", *overrides
        )
        return load_file(run_train(config, resume=resume) / "model.safetensors")

    whole = run("whole", "checkpoints.every=2")
    # the files after a kill in step 4: the checkpoint of step 2, and metrics of steps that are run again
    (tmp_path / "resumed" / "checkpoints").mkdir(parents=True)
    (tmp_path / "whole" / "checkpoints" / "step-000002").rename(tmp_path / "resumed" / "checkpoints" / "step-000002")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "resumed" / "metrics.jsonl").write_text("\n".join([*lines[:3], '{"step": 4, "lo']))
    resumed = run("resumed", resume=True)
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
    rows = [read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "resumed")]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for first, second in zip(*rows, strict=True):
        for key in ("loss", "reward/mean", "teacher/k2", "grad_norm"):
            assert first[key] == pytest.approx(second[key], abs=1e-6), key


def test_sigterm_saves_a_checkpoint_and_the_run_resumes_from_it(tmp_path, pocket_teacher, verifier):
    out = tmp_path / "run"
    arguments = [
        sys.executable, "-m", "vold_trainer", "train", "pocket:vold", f"out={out}", "student.path=pocket:student",
        f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}", *SMALL, "steps=6",
    ]  # fmt: skip
    process = programs.start(arguments, stderr=subprocess.PIPE)
    while not read_json_lines(out / "metrics.jsonl"):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    done = len(read_json_lines(out / "metrics.jsonl"))
    assert 1 <= done < 6
    assert programs.run([*arguments, "--resume"], timeout=120).returncode == 0
    assert [row["step"] for row in read_json_lines(out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_trainers_share_one_teacher_at_the_same_time(tmp_path, pocket_teacher, verifier):
    processes = [
        programs.start(
            [
                sys.executable, "-m", "vold_trainer", "train", "pocket:vold", f"out={tmp_path / name}", f"seed={seed}",
                "student.path=pocket:student", f"teacher.url={url}", f"verifier.url={verifier.grpc}", *SMALL, "steps=4",
            ],
            stderr=subprocess.PIPE,
        )
        for seed, (name, url) in enumerate([("one", pocket_teacher.grpc), ("two", pocket_teacher.http)])
    ]  # fmt: skip
    for process in processes:
        assert process.wait(180) == 0, process.stderr.read().decode()
    runs = [read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert all(len(rows) == 4 and not any(row["missing/teacher"] for row in rows) for rows in runs)
    starts = [json.loads((tmp_path / name / "run.json").read_text())["teacher"] for name in ("one", "two")]
    assert starts[0] == starts[1]


def test_a_teacher_is_swapped_by_its_url(tmp_path, pocket_teacher, verifier):
    with serving("teacher", "--model", str(checkpoint_path("teacher-b"))) as other:
        for name, url in (("a", pocket_teacher.grpc), ("b", other.grpc)):
            run_train(train_config(tmp_path / name, url, verifier.grpc, "steps=1"))
    teachers = [json.loads((tmp_path / name / "run.json").read_text())["teacher"] for name in ("a", "b")]
    assert teachers[0]["weights_fingerprint"] != teachers[1]["weights_fingerprint"]
    assert teachers[0]["tokenizer_fingerprint"] == teachers[1]["tokenizer_fingerprint"]


def test_a_resumed_run_requires_the_teacher_it_started_with(tmp_path, pocket_teacher, verifier):
    run_train(train_config(tmp_path / "run", pocket_teacher.grpc, verifier.grpc, "checkpoints.every=1"))
    with serving("teacher", "--model", str(checkpoint_path("teacher-b"))) as other:
        config = train_config(tmp_path / "run", other.grpc, verifier.grpc)
        with pytest.raises(RunError, match=r"the run began with teacher .*allow_identity_change"):
            run_train(config, resume=True)
        allowed = train_config(tmp_path / "run", other.grpc, verifier.grpc, "teacher.allow_identity_change=true")
        run_train(allowed, resume=True)


def test_a_teacher_that_changes_in_mid_run_stops_it(tmp_path, verifier, monkeypatch):
    """The second teacher takes the first one's socket after the first step."""
    from vold_trainer.training import loop

    socket = f"unix:{tmp_path / 'teacher.sock'}"
    arguments = ("--grpc", socket, "--http", "none")
    servers = [
        serving("teacher", "--model", str(checkpoint_path(name)), *arguments) for name in ("teacher", "teacher-b")
    ]
    servers[0].__enter__()
    step = loop.Loop._step

    def step_then_swap(self, number):
        figures = step(self, number)
        if number == 0:
            servers[0].__exit__(None, None, None)
            servers[1].__enter__()
        return figures

    monkeypatch.setattr(loop.Loop, "_step", step_then_swap)
    try:
        with pytest.raises(RunError, match=r"changed in mid-run.*allow_identity_change"):
            run_train(train_config(tmp_path / "run", socket, verifier.grpc))
    finally:
        servers[1].__exit__(None, None, None)


def test_traces_are_correct_completions_of_the_teacher(tmp_path, pocket_teacher, verifier):
    overrides = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}", "data.limit=40"]
    config = load(TracesConfig, Path("pocket:traces"), [*overrides, f"out={tmp_path / 't.jsonl'}"])
    summary = run_traces(config)
    rows = read_json_lines(config.out)
    assert summary.requested == 40
    assert len(rows) == summary.written == 40 - sum(summary.dropped.values())
    for row in rows:
        assert re.search(r"\\boxed\{(-?\d+)\}", row["completion"]).group(1) == row["reference"]
    student = load_student(load(SftConfig, Path("pocket:sft")).student)
    for trace, row in zip(read_traces(config.out, student), rows, strict=True):
        assert list(trace.ids) == row["completion_ids"]
    unfiltered = load(
        TracesConfig,
        Path("pocket:traces"),
        [f"out={tmp_path / 'all.jsonl'}", f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all",
         "data.limit=40"],
    )  # fmt: skip
    assert run_traces(unfiltered).written >= summary.written
    # How many rows are under way together, and which stand before a row, changes no trace of it.
    part = load(
        TracesConfig,
        Path("pocket:traces"),
        [*overrides, f"out={tmp_path / 'part.jsonl'}", "data.offset=7", "data.limit=20", "in_flight=3"],
    )
    run_traces(part)
    ids = {row["id"] for row in read_json_lines(part.out)}
    assert read_json_lines(part.out) == [row for row in rows if row["id"] in ids]
    assert len(ids) > 10


@pytest.mark.slow
def test_sft_lowers_the_loss(tmp_path, pocket_teacher, verifier):
    traces = load(
        TracesConfig,
        Path("pocket:traces"),
        [f"out={tmp_path / 't.jsonl'}", f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}",
         "data.limit=64"],
    )  # fmt: skip
    run_traces(traces)
    config = load(SftConfig, Path("pocket:sft"), [f"out={tmp_path / 'sft'}", f"traces={traces.out}", "steps=12"])
    run_sft(config)
    losses = [row["loss"] for row in read_json_lines(tmp_path / "sft" / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_evaluation_agrees_with_reasoning_gyms_own_scorer(tmp_path, verifier):
    """The verifier's verdicts against the scores of the library that generates the problems."""
    from vold_trainer.pocket.problems import sample_problems, score

    config = load(
        EvalConfig,
        Path("pocket:eval"),
        [f"out={tmp_path}", f"verifier.url={verifier.grpc}", "data.0.limit=60", "data.1.limit=60", "samples=60",
         "student.path=pocket:student"],
    )  # fmt: skip
    results = run_eval(config)
    samples = read_json_lines(tmp_path / "eval_samples.jsonl")
    assert len(samples) == 120
    by_id = {problem.id: problem for problem in sample_problems("test", 60)}
    for sample in samples:
        expected = score(by_id[sample["id"].rpartition("-")[0]], sample["extracted"])
        assert (expected == 1.0) == bool(sample["correct"]), sample
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["image"]["accuracy"] == results["image"].accuracy


def test_a_tokenizer_of_another_family_is_refused(tmp_path, verifier):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path / "other-family"
    core = Tokenizer(models.WordLevel({f"word{index}": index for index in range(200)}, unk_token="word0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="word1", pad_token="word2")
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    with (
        serving("teacher", "--model", str(folder)) as other_family,
        pytest.raises(HandshakeError, match="token ids mean the same to the teacher"),
    ):
        run_train(train_config(tmp_path / "run", other_family.grpc, verifier.grpc))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.path=/nowhere"], "student.path '/nowhere'"),
        (["teacher.url=local:/nowhere"], "teacher.url 'local:/nowhere': there is no model folder"),
        (["teacher.url=localhost:1"], "localhost:1"),
        (["data.source=nowhere.jsonl"], "data.source 'nowhere.jsonl'"),
        (["student.freeze=[eyes]"], "'eyes' is no part"),
    ],
)
def test_invalid_settings_end_with_a_clear_message(tmp_path, pocket_teacher, verifier, overrides, message):
    from vold_client import VoldError

    config = train_config(tmp_path, pocket_teacher.grpc, verifier.grpc, *overrides)
    with pytest.raises((UsageError, VoldError), match=message):
        run_train(config)


def test_the_command_line_ends_with_status_one_and_no_traceback(tmp_path):
    found = programs.run([sys.executable, "-m", "vold_trainer", "train", "pocket:vold", "objective.betta=1"])
    assert found.returncode == 1
    assert "did you mean 'beta'" in found.stderr
    assert "Traceback" not in found.stderr
