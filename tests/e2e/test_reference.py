"""A KL to a reference: the student at the start of the run, with all weights or with adapters, or a service."""

import shutil
from pathlib import Path

import pytest
import torch
from servers import Server, serving
from vold_trainer.config import StudentConfig, TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.runs.checkpoint import choose_checkpoint
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.training.train import run_train
from vold_trainer.training.update import PolicyUpdater

SETTINGS = (
    *("rollout.prompts=6", "rollout.group=4", "rollout.max_tokens=24", "steps=3", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=3e-3", "optim.warmup_steps=0", "batch.micro=7", "diagnostics.every=0"),
    *("teacher=null", "objective={name: grpo, kl_beta: 0.5}", "checkpoints={every: 1, keep_last: 9}"),
)
LORA = "student.lora={r: 4, alpha: 8}"


def config(out: Path, verifier: Server, *overrides: str) -> TrainConfig:
    settings = [f"out={out}", f"verifier.url={verifier.grpc}", *SETTINGS, *overrides]
    return load(TrainConfig, Path("pocket:vold"), settings)


@pytest.fixture
def batches(monkeypatch):
    """The scored batches of the steps that are run."""
    kept, update = [], PolicyUpdater.update

    def keep(self, step, scored, *rest):
        kept.append(scored)
        return update(self, step, scored, *rest)

    monkeypatch.setattr(PolicyUpdater, "update", keep)
    return kept


def mean_k3(scored, student, reference) -> float:
    """The mean over sequences of the mean over tokens of exp(g) - 1 - g, g = log pi_ref - log pi."""
    total = 0.0
    for rollout in scored.rollouts:
        values = []
        for model in (student, reference):
            batch = make_batch(model, [rollout.example], [rollout.ids], device=torch.device("cpu"))
            with torch.no_grad():
                values.append(CompletionScorer(model.model)(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N)
        gap = values[1] - values[0]
        total += (gap.expm1() - gap).mean().item()
    return total / len(scored.rollouts)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_student_at_the_start_also_when_a_run_is_resumed(tmp_path, lora, verifier, batches):
    options = (LORA, "optim.lr=1e-2") if lora else ()
    run_train(config(tmp_path / "whole", verifier, *options))
    rows = read_json_lines(tmp_path / "whole" / "metrics.jsonl")
    assert rows[0]["loss/reference"] == pytest.approx(0, abs=1e-6), "the student is its own reference at first"
    assert rows[1]["loss/reference"] > 1e-4
    assert rows[0]["loss/total"] == rows[0]["loss"]

    before = load_student(StudentConfig(path="pocket:student"))
    weights = config(tmp_path, verifier, *options).student
    trained = load_student(weights)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    checkpoint = choose_checkpoint(tmp_path / "part", "2", "max")
    saved = checkpoint.tensors("learning")
    with torch.no_grad():
        for name, value in trained.model.named_parameters():
            if name in saved:
                value.copy_(saved[name])
    run_train(config(tmp_path / "part", verifier, *options), resume=True, step="2")
    resumed = read_json_lines(tmp_path / "part" / "metrics.jsonl")
    for left, right in zip(rows, resumed, strict=True):
        for name in ("loss", "loss/reference", "grad_norm"):
            assert left[name] == right[name], name
    assert resumed[-1]["loss/reference"] == pytest.approx(mean_k3(batches[-1], trained, before), rel=1e-3)


@pytest.mark.slow
def test_a_reference_at_a_url_scores_what_the_teacher_would(tmp_path, verifier, batches):
    """In the first step, with the student's own weights behind the URL, the KL is 0; a teacher's is not."""
    with serving("teacher", "--model", str(checkpoint_path("teacher"))) as server:
        run_train(config(tmp_path / "run", verifier, f"reference.url={server.grpc}", "steps=1"))
    (row,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert row["missing/reference"] == 0
    scored = batches[-1]
    total = 0.0
    student = load_student(StudentConfig(path="pocket:student"))
    for rollout, score in zip(scored.rollouts, scored.scores, strict=True):
        batch = make_batch(student, [rollout.example], [rollout.ids], device=torch.device("cpu"))
        with torch.no_grad():
            own = CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N
        gap = torch.from_numpy(score.reference_logprobs) - own
        total += torch.where(gap.isfinite(), gap.expm1() - gap, 0.0).mean().item()
    assert row["loss/reference"] == pytest.approx(total / len(scored.rollouts), rel=1e-3)
    assert row["loss/reference"] > 0.1
    assert all(score.teacher_logprobs is None for score in scored.scores)
