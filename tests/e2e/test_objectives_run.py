"""Every objective for some steps in the pocket world with real services; several teachers; unsuitable teachers."""

import json
import math
import shutil
from pathlib import Path

import pytest
from servers import serving
from vold_client import TeacherClient
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import TracesConfig, TrainConfig, load
from vold_trainer.errors import HandshakeError, UsageError
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.training.train import run_train

SMALL = (
    *("rollout.prompts=8", "rollout.group=4", "rollout.max_tokens=32", "steps=2", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "diagnostics.every=0"),
)
DISTILLATION = {"loss/teacher"}
SUPPORT = {"loss/teacher", "support/student_mass", "support/teacher_mass"}
POLICY = {"loss/policy", "clip/high", "ratio/mean"}
RUNS = {
    "grpo": ("{name: grpo, rollout_cap: 2}", POLICY | {"mismatch/ratio"}),
    "dr-grpo": ("{name: dr-grpo}", POLICY),
    "dapo": ("{name: dapo, rounds: 2}", POLICY | {"dapo/rounds", "dapo/dropped_groups"}),
    "gspo": ("{name: gspo}", POLICY),
    "cispo": ("{name: cispo}", {"loss/policy"}),
    "opd": ("{name: opd, discount: 0.5}", DISTILLATION),
    "opd-top-k": ("{name: opd-top-k}", SUPPORT),
    "opd-top-k-teacher": ("{name: opd-top-k, support: teacher, mask_special: true, top_k: 8}", SUPPORT),
    "opd-top-k-forward": ("{name: opd-top-k, support: teacher, divergence: forward-kl}", SUPPORT),
    "opd-entropy": ("{name: opd-entropy, threshold: 0.1}", SUPPORT | {"loss/forward_kl", "teacher/unsure"}),
    "vold": ("{name: vold, rollout_cap: 2}", POLICY | DISTILLATION | {"mismatch/ratio"}),
    "vold-jsd": ("{name: vold, divergence: jsd, masked: false, ratio: sequence}", POLICY | SUPPORT),
    "kdrl": ("{name: kdrl, mask: group}", POLICY | {"objective/beta"}),
    "srpo": ("{name: srpo}", POLICY),
    "hdpo": ("{name: hdpo}", POLICY),
    "mopd": ("{name: mopd}", POLICY),
    "opd-then-rl": ("{name: opd-then-rl, switch: 1}", POLICY | {"objective/distils"}),
    "gkd-student": ("{name: gkd, student_share: 1}", SUPPORT),
    "gkd": ("{name: gkd, traces: TRACES}", SUPPORT),
}
NOT_SLOW = ("opd-top-k", "opd-entropy", "dapo", "vold", "gkd")
"""One of each kind: candidates, the teacher's ids and entropy, several rounds, importance sampling, traces."""


def train(out: Path, objective: str, teacher: str, verifier: str, *overrides: str) -> list[dict]:
    urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    config = load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, f"objective={objective}", *overrides])
    run_train(config)
    return read_json_lines(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def traces(tmp_path_factory, pocket_teacher):
    out = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    urls = [f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all"]
    run_traces(load(TracesConfig, Path("pocket:traces"), [f"out={out}", *urls, "data.limit=24"]))
    return out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in NOT_SLOW else pytest.mark.slow) for name in RUNS]
)
def test_every_objective_runs_through_the_real_services(name, tmp_path, pocket_teacher, verifier, traces):
    objective, metrics = RUNS[name]
    rows = train(tmp_path, objective.replace("TRACES", str(traces)), pocket_teacher.grpc, verifier.grpc)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert metrics <= row.keys(), metrics - row.keys()
        assert math.isfinite(row["loss"])
        assert row["missing/teacher"] == row["missing/verifier"] == row.get("sane/alarms", 0) == 0
    assert any(row["grad_norm"] > 0 for row in rows)
    if "mismatch/ratio" in metrics:  # the trainer generates the rollouts itself: no mismatch but rounding
        assert all(row["mismatch/ratio"] == pytest.approx(1, abs=1e-3) for row in rows)
    if "support/teacher_mass" in metrics:
        assert all(0 < row["support/teacher_mass"] <= 1 + 1e-5 for row in rows)
        top_k = 8 if "top_k: 8" in objective else 16
        assert all((row["support/ids"] == top_k) != ("mask_special" in objective) for row in rows)


@pytest.mark.slow
def test_gkd_samples_the_source_of_the_completions_of_each_step(tmp_path, pocket_teacher, verifier, traces):
    objective = f"{{name: gkd, traces: {traces}, student_share: 0.5}}"
    kept = ("checkpoints.every=1", "checkpoints.keep_best=1")  # by the reward, which steps on traces have not
    rows = train(tmp_path, objective, pocket_teacher.grpc, verifier.grpc, "steps=6", "rollout.group=2", *kept)
    on_traces = [row for row in rows if row.get("objective/on_policy") == 0]
    assert 0 < len(on_traces) < 6
    assert not any(row["sane/alarms"] for row in rows), "traces differ from the student's own completions"
    assert all("reward/mean" not in row for row in on_traces)  # traces are not verified
    on_policy = [row for row in rows if row not in on_traces]
    assert all(row["reward/mean"] is not None for row in on_policy)
    # the teacher's own traces are more likely under the teacher
    assert max(abs(row["teacher/gap"]) for row in on_policy) > 0


def test_dapo_trains_only_on_groups_with_correct_and_wrong_completions(tmp_path, pocket_teacher, verifier):
    """The base student is rarely correct: a second round is needed, and uniform groups are dropped."""
    (row,) = train(
        tmp_path, "{name: dapo, rounds: 2}", pocket_teacher.grpc, verifier.grpc, "steps=1", "rollout.prompts=8"
    )
    uniform = row["groups/all_correct"] + row["groups/all_wrong"]
    assert row["dapo/rounds"] == 2
    assert row["dapo/dropped_groups"] == (round(16 * uniform) if uniform < 1 else 8)


def test_the_teacher_is_not_queried_after_the_switch_to_reinforcement_learning(tmp_path, pocket_teacher, verifier):
    out = tmp_path / "opd-then-rl"  # the teacher accounts usage by the name of the folder
    rows = train(out, "{name: opd-then-rl, switch: 1}", pocket_teacher.grpc, verifier.grpc)
    assert [row["objective/distils"] for row in rows] == [1, 0]
    assert scored_tokens(pocket_teacher, out.name) == pytest.approx(32 * rows[0]["length/mean"])
    assert "teacher/gap" in rows[0]
    assert "teacher/gap" not in rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_reinforcement_learning_follows_once_distillation_levels_off(tmp_path, pocket_teacher, verifier, ahead):
    out = tmp_path / f"plateau-{ahead}"
    still = ("steps=8", "optim.lr=1e-9", f"rollout.ahead={ahead}")
    rows = train(out, "{name: opd-then-rl, switch: plateau, window: 1}", pocket_teacher.grpc, verifier.grpc, *still)
    distils = [row["objective/distils"] for row in rows]
    levelled = next(n for n in range(1, 8) if rows[n]["teacher/k2"] >= 0.95 * rows[n - 1]["teacher/k2"])
    assert distils == [1.0] * (levelled + 1 + ahead) + [0.0] * (7 - levelled - ahead)
    assert ["teacher/k2" in row for row in rows] == [bool(each) for each in distils]
    sent = sum(32 * row["length/mean"] for row in rows if row["objective/distils"])
    assert scored_tokens(pocket_teacher, out.name) == pytest.approx(sent)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("kept", [1, 2, 4])
def test_a_resumed_run_switches_at_the_step_of_an_uninterrupted_one(tmp_path, pocket_teacher, verifier, ahead, kept):
    urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    settings = [*urls, *SMALL, "objective={name: opd-then-rl, switch: plateau, window: 1}", "optim.lr=1e-6"]
    settings += ["steps=6", "checkpoints.every=1", "checkpoints.keep_last=9", f"rollout.ahead={ahead}"]
    config = load(TrainConfig, Path("pocket:vold"), [f"out={tmp_path / 'run'}", *settings])
    run_train(config)
    whole = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert {row["objective/distils"] for row in whole} == {0.0, 1.0}
    for step in range(kept + 1, 7):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:06d}")
    run_train(config, resume=True)
    resumed = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    for name in ("objective/distils", "loss", "grad_norm", "length/mean"):
        assert [row[name] for row in resumed] == [row[name] for row in whole], name


def scored_tokens(server, run_id: str) -> int:
    with TeacherClient(server.grpc) as client:
        return sum(usage.scored_tokens for usage in client.usage() if usage.run_id == run_id)


def test_several_teachers_score_their_own_rows_and_replicas_share_the_work(tmp_path, pocket_teacher, verifier):
    rows = [{"prompt": f"{index} + 4 =", "reference": str(index + 4), "tags": ["sum"]} for index in range(1, 7)] + [
        {"prompt": f"{index} - 1 =", "reference": str(index - 1), "teacher": "two"} for index in range(1, 7)
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "several-teachers"
    with (
        serving("teacher", "--model", str(checkpoint_path("teacher"))) as replica,
        serving("teacher", "--model", str(checkpoint_path("teacher-b"))) as other,
    ):
        urls = f"['{pocket_teacher.grpc}', '{replica.grpc}']"
        config = load(
            TrainConfig,
            Path("pocket:vold"),
            [f"out={out}", *SMALL, "objective={name: mopd}", "teacher=null", f"verifier.url={verifier.grpc}",
             f"teachers={{one: {{url: {urls}, tags: [sum]}}, two: {{url: '{other.grpc}'}}}}",
             f"data.source={tmp_path / 'rows.jsonl'}", "data.offset=0", "rollout.prompts=12", "rollout.group=8",
             "rollout.batch=32", "diagnostics={every: 1, rollouts: 96}"],
        )  # fmt: skip
        run_train(config)
        used = [scored_tokens(server, out.name) for server in (pocket_teacher, replica, other)]
    metrics = read_json_lines(out / "metrics.jsonl")
    assert all(tokens > 0 for tokens in used)
    # Every rollout is scored once for the loss and once for the diagnostics.
    assert sum(used) == pytest.approx(2 * sum(96 * row["length/mean"] for row in metrics))
    assert all(0 < row["overlap/ratio"] <= 1 and row["teacher/entropy"] > 0 for row in metrics)
    assert all(row["missing/teacher"] == 0 for row in metrics)
    about = json.loads((out / "run.json").read_text())["teachers"]
    assert about["one"]["weights_fingerprint"] != about["two"]["weights_fingerprint"]


def test_a_row_without_a_teacher_stops_the_run_before_it_starts(tmp_path, pocket_teacher):
    config = load(
        TrainConfig,
        Path("pocket:vold"),
        [f"out={tmp_path}", *SMALL, "objective={name: opd}", "teacher=null", "verifier=null",
         f"teachers={{one: {{url: '{pocket_teacher.grpc}', tags: [sum]}}}}"],
    )  # fmt: skip
    with pytest.raises(UsageError, match="names no teacher, and nobody claims its tags"):
        run_train(config)


def test_a_token_with_another_meaning_for_the_teacher_is_masked_and_counted(tmp_path, verifier):
    """In the teacher's tokenizer the ids of the digits are other words: their scores are masked and counted."""
    folder = tmp_path / "teacher"
    shutil.copytree(checkpoint_path("teacher"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {(f"d{word}" if word.isdigit() else word): index for word, index in vocab.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with serving("teacher", "--model", str(folder)) as other:
        (row,) = train(tmp_path / "run", "{name: opd}", other.grpc, verifier.grpc, "steps=1")
    samples = read_json_lines(tmp_path / "run" / "rollouts.jsonl")
    digits = 0
    for sample in samples:
        expected = [token.isdigit() for token in sample["tokens"]]
        assert [value is None for value in sample["teacher_logprobs"]] == expected
        digits += sum(expected)
    assert row["missing/masked_positions"] >= digits > 0
    assert row["missing/teacher"] == 0


def test_a_teacher_with_too_low_limits_is_refused_before_the_run(tmp_path, verifier):
    model = ("--model", str(checkpoint_path("teacher")))
    with serving("teacher", *model, "--max-top-k", "4", "--max-candidates", "4") as small:
        with pytest.raises(HandshakeError, match=r"16 most likely ids .*offers 4: lower objective\.top_k"):
            train(tmp_path / "run", "{name: gkd, student_share: 1}", small.grpc, verifier.grpc)
        with pytest.raises(HandshakeError, match=r"ids that the student chooses.*offers 4: lower objective\.top_k"):
            train(tmp_path / "run", "{name: opd-top-k}", small.grpc, verifier.grpc)
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        arguments = ("{name: opd-top-k, top_k: 4}", small.grpc, verifier.grpc, "steps=1", "diagnostics.every=1")
        (row,) = train(tmp_path / "run", *arguments)
        assert (
            4 * row["overlap/ratio"] * row["overlap/student_mass"] > 0
        )  # measured over the 4 ids that the teacher allows
