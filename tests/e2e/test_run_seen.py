"""Diagnostics, which change no metric of a run, and trackers, which a resumed run continues."""

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.training.train import run_train

SMALL = (
    *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "steps=2", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "samples_every=1"),
)
MEASURED = {"overlap/ratio", "overlap/student_mass", "overlap/teacher_mass", "entropy/gap", "teacher/entropy"}


def config(out: Path, teacher: str, verifier: str, *overrides: str) -> TrainConfig:
    urls = [f"out={out}", f"teacher.url={teacher}", f"verifier.url={verifier}"]
    return load(TrainConfig, Path("pocket:vold"), [*urls, *SMALL, *overrides])


@pytest.mark.parametrize(
    ("objective", "ahead"), [("{name: vold}", 0), ("{name: vold}", 1), ("{name: opd-top-k, top_k: 8}", 0)]
)
def test_diagnostics_change_no_other_metric(objective, ahead, tmp_path, pocket_teacher, verifier):
    rows = {}
    for every in (0, 1):
        out = tmp_path / str(every)
        measured = (f"diagnostics.every={every}", "diagnostics.rollouts=6")
        chosen = (*measured, f"objective={objective}", f"rollout.ahead={ahead}", "checkpoints.every=1")
        run_train(config(out, pocket_teacher.grpc, verifier.grpc, *chosen))
        rows[every] = read_json_lines(out / "metrics.jsonl")
    for without, measured in zip(rows[0], rows[1], strict=True):
        assert measured.keys() - without.keys() >= MEASURED
        compared = {key for key in without if key.split("/")[0] not in ("time", "tokens")}
        assert {key: measured[key] for key in compared} == {key: without[key] for key in compared}
        assert 0 < measured["overlap/ratio"] < 1
        assert all(0 < measured[f"overlap/{who}_mass"] <= 1 + 1e-5 for who in ("student", "teacher"))
        assert len(measured["overlap_by_position"]) == 10
    lanes = {row["lane"] for row in read_json_lines(tmp_path / "1" / "timeline.jsonl")}
    assert {"generate", "teacher", "verifier", "optimise", "diagnose", "sync", "checkpoint"} <= lanes


def test_tensorboard_holds_the_metrics_and_a_resumed_run_continues(tmp_path, pocket_teacher, verifier):
    settings = config(tmp_path, pocket_teacher.grpc, verifier.grpc, "trackers=[tensorboard]", "checkpoints.every=1")
    run_train(settings)
    tracker_id = (tmp_path / "trackers.json").read_text()
    first = read_json_lines(tmp_path / "metrics.jsonl")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")
    run_train(settings, resume=True)  # step 2 once more, from the checkpoint of step 1
    assert (tmp_path / "trackers.json").read_text() == tracker_id
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [row["loss"] for row in first]
    assert rows[1]["time"] > rows[0]["time"]
    events = EventAccumulator(str(tmp_path / "vold"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    for key in ("reward/mean", "loss", "teacher/k2", "overlap/ratio", "tokens/per_second"):
        logged = {event.step: event.value for event in events.Scalars(key)}
        assert [event.step for event in events.Scalars(key)] == sorted(logged)
        assert logged == pytest.approx({row["step"]: row[key] for row in rows if key in row})
    text = events.Tensors("rollouts/0/text_summary")
    sample = read_json_lines(tmp_path / "rollouts.jsonl")[0]
    assert sample["id"] in text[0].tensor_proto.string_val[0].decode()
    settings_kept = [path.read_text() for path in (tmp_path / "vold").glob("*/hparams.yml")]
    assert settings_kept
    assert all("objective.name: vold" in kept for kept in settings_kept)
    assert json.loads(tracker_id)["id"]
