"""A teacher that is asked only for what the objective uses: fewer tokens, and the same run to the last digit."""

import json
from pathlib import Path

import pytest
from servers import Server
from vold_client import TeacherClient
from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.training.train import run_train

SETTINGS = (
    *("rollout.prompts=8", "rollout.group=4", "steps=2", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "batch.micro=7", "samples_every=1"),
)
SAME = ("loss", "loss/policy", "loss/total", "grad_norm", "reward/mean", "length/mean", "clip/high")


def train(out: Path, teacher: Server, verifier: Server, *overrides: str) -> tuple[list[dict], int]:
    """(the metrics, the completion tokens that the teacher scored for this run)."""
    urls = (f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}")
    run_train(load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SETTINGS, *overrides]))
    with TeacherClient(teacher.grpc) as client:
        tokens = sum(usage.scored_tokens for usage in client.usage() if usage.run_id == out.name)
    return read_json_lines(out / "metrics.jsonl"), tokens


@pytest.mark.parametrize(
    "objective",
    [
        "{name: vold}",
        pytest.param("{name: vold, truncated: mask, masked: false}", marks=pytest.mark.slow),
        pytest.param("{name: vold, divergence: reverse-kl}", marks=pytest.mark.slow),
        pytest.param("{name: kdrl, mask: group, beta: 0.1}", marks=pytest.mark.slow),
        pytest.param("{name: hdpo}", marks=pytest.mark.slow),
        pytest.param("{name: srpo}", marks=pytest.mark.slow),
    ],
)
def test_a_teacher_asked_for_less_scores_fewer_tokens_and_changes_no_loss(
    tmp_path, objective, pocket_teacher, verifier
):
    names = [f"{tmp_path.name}-{kind}" for kind in ("all", "used")]  # the teacher accounts usage by them
    longest = 12 if "truncated" in objective else 40
    common = (f"objective={objective}", "diagnostics.every=0", f"rollout.max_tokens={longest}")
    whole, before = train(tmp_path / names[0], pocket_teacher, verifier, *common)
    some, after = train(tmp_path / names[1], pocket_teacher, verifier, *common, "teacher.only=used")
    for left, right in zip(whole, some, strict=True):
        for name in SAME:
            assert left.get(name) == right.get(name), name
        assert left.get("loss/teacher") == right.get("loss/teacher")
        assert right["missing/teacher"] == 0
        assert "teacher/sent" not in left
    assert any(row["grad_norm"] > 0 for row in some)
    assert 0 < after < before
    assert after == sum(row["teacher/sent_tokens"] for row in some)
    samples = [read_json_lines(tmp_path / name / "rollouts.jsonl") for name in names]
    assert [sample["ids"] for sample in samples[0]] == [sample["ids"] for sample in samples[1]]
    asked = [sample for sample in samples[1] if any(value is not None for value in sample["teacher_logprobs"])]
    if objective == "{name: vold}":
        assert asked
        assert not any(sample["correct"] for sample in asked)
        assert all(row["teacher/gap_correct"] is None for row in some)
        shares = [1 - row["reward/correct"] for row in some]
        assert [row["teacher/sent"] for row in some] == pytest.approx(shares)


@pytest.mark.slow
def test_diagnostics_ask_for_completions_that_the_loss_does_not_use(tmp_path, pocket_teacher, verifier):
    rows, tokens = train(
        tmp_path / "diagnosed", pocket_teacher, verifier, "objective={name: vold}", "teacher.only=used", "steps=1",
        "diagnostics={every: 1, rollouts: 32}",
    )  # fmt: skip
    lengths = 32 * rows[0]["length/mean"]
    assert tokens == pytest.approx(lengths + rows[0]["teacher/sent_tokens"])
    assert rows[0]["teacher/sent_tokens"] < lengths
    assert rows[0]["overlap/ratio_correct"] is not None


GRADED = {
    "parts": [
        {"verifier": "numeric", "weight": 0.5},
        {"verifier": "format", "weight": 0.5, "parameters": {"tags": [], "max_chars": 1000}},
    ]
}
"""Every wrong answer of the student is half right: its form is."""


@pytest.mark.slow
def test_a_graded_reward_weighs_the_teachers_term(tmp_path, pocket_teacher, verifier):
    """With (1 - r) from the reward a half right completion has half the term, and a right one none."""
    graded = ("verifier.name=composite", f"verifier.parameters={json.dumps(GRADED)}", "teacher.only=used", "steps=1")
    by_verdict, sent = train(tmp_path / "verdict", pocket_teacher, verifier, *graded, "objective={name: vold}")
    by_reward, sent_too = train(
        tmp_path / "reward", pocket_teacher, verifier, *graded, "objective={name: vold, mask: reward}"
    )
    assert {sample["reward"] for sample in read_json_lines(tmp_path / "reward" / "rollouts.jsonl")} == {0.5, 1.0}
    assert by_reward[0]["loss/teacher"] == pytest.approx(by_verdict[0]["loss/teacher"] / 2, rel=1e-5)
    assert by_reward[0]["loss/teacher"] > 0
    assert by_reward[0]["loss/policy"] == by_verdict[0]["loss/policy"]
    assert 0 < sent_too == sent
