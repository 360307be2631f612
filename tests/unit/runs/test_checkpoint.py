"""Checkpoints: incomplete ones are ignored, old ones deleted, runs restored exactly, students exported."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText
from vold_trainer.config import CheckpointsConfig, SftConfig, TrainConfig, dump
from vold_trainer.errors import UsageError
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs.checkpoint import (
    begin_checkpoint,
    best_checkpoints,
    choose_checkpoint,
    finish_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
)
from vold_trainer.runs.export import run_export
from vold_trainer.runs.saving import Saver, random_state, set_random_state
from vold_trainer.student.models import load_student


def write(out, step, score=None):
    return finish_checkpoint(
        begin_checkpoint(out, step), step, {"learning": {"w": torch.full((64,), float(step))}}, {"score": score}
    )


def steps(out):
    return [checkpoint.step for checkpoint in list_checkpoints(out)]


def test_incomplete_checkpoints_are_ignored(tmp_path):
    for step in range(1, 7):
        write(tmp_path, step)
    root = tmp_path / "checkpoints"
    cut = root / "step-000006" / "learning.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    (root / "step-000005" / "learning.safetensors").unlink()
    (root / "step-000004" / "state.json").write_text('{"step": 4, "fi')
    (root / "step-000003" / "state.json").write_text("[]")
    begin_checkpoint(tmp_path, 7)  # killed before it was finished
    (root / "step-000008").mkdir()
    assert steps(tmp_path) == [1, 2]
    assert latest_checkpoint(tmp_path).tensors("learning")["w"][0] == 2
    prune_checkpoints(tmp_path, keep_last=1, keep_best=0, mode="max")
    assert [path.name for path in root.iterdir()] == ["step-000002"]


def test_a_step_saved_twice_replaces_the_first_checkpoint(tmp_path):
    write(tmp_path, 3, score=1.0)
    write(tmp_path, 3, score=2.0)
    assert [(checkpoint.step, checkpoint.score) for checkpoint in list_checkpoints(tmp_path)] == [(3, 2.0)]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]


def test_without_checkpoints_there_is_no_latest_one(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(UsageError, match=r"has no complete checkpoint: set checkpoints\.every"):
        choose_checkpoint(tmp_path, "last", "max")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each waits for the disk
@given(
    scores=st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=7),
    last=st.integers(1, 4),
    best=st.integers(0, 3),
    mode=st.sampled_from(["max", "min"]),
)
def test_the_last_and_the_best_are_kept_and_no_other(tmp_path_factory, scores, last, best, mode):
    out = tmp_path_factory.mktemp("run")
    for step, score in enumerate(scores, 1):
        write(out, step, score)
    sign = 1 if mode == "max" else -1
    ranked = sorted((s for s, x in enumerate(scores, 1) if x is not None), key=lambda s: (sign * scores[s - 1], s))
    wanted = {*range(1, len(scores) + 1)[-last:], *ranked[len(ranked) - min(best, len(ranked)) :]}
    prune_checkpoints(out, keep_last=last, keep_best=best, mode=mode)
    assert steps(out) == sorted(wanted)
    assert len(list((out / "checkpoints").iterdir())) == len(wanted)
    shutil.rmtree(out)


def test_the_best_has_the_best_score_and_the_later_step_among_equals(tmp_path):
    for step, score in enumerate([0.1, 0.7, 0.7, None, 0.2], 1):
        write(tmp_path, step, score)
    assert choose_checkpoint(tmp_path, "best", "max").step == 3
    assert choose_checkpoint(tmp_path, "best", "min").step == 1
    assert choose_checkpoint(tmp_path, "4", "max").step == 4
    assert choose_checkpoint(tmp_path, "last", "max").step == 5
    assert [checkpoint.step for checkpoint in best_checkpoints(list_checkpoints(tmp_path), 9, "max")] == [3, 2, 5, 1]
    with pytest.raises(UsageError, match="no checkpoint of step '9': choose last, best, or one of 1, 2, 3, 4, 5"):
        choose_checkpoint(tmp_path, "9", "max")


def test_a_run_without_scores_has_no_best(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(UsageError, match=r"has a score: set checkpoints\.metric"):
        choose_checkpoint(tmp_path, "best", "max")


def test_random_number_generators_are_restored():
    def numbers():
        return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()

    numbers()
    state = random_state()
    first = numbers()
    numbers()
    set_random_state(state)
    assert numbers() == first


@pytest.fixture
def config(tmp_path):
    keep = CheckpointsConfig(every=2, keep_last=3, keep_best=1, metric="loss", mode="min", window=2)
    return TrainConfig(out=tmp_path / "run", student={"path": "pocket:student"}, steps=6, checkpoints=keep)


def trained(config, steps):
    """A student after some optimizer steps, its PreparedModel and its Saver."""
    ranks = Ranks(make_accelerator())
    student = load_student(config.student)
    prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, prepared, ranks, {"prompts": 8})
    for step in range(steps):
        learn(student, prepared, step)
    return student, prepared, saver


def learn(student, prepared, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in student.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    norm = prepared.optimizer_step()
    return norm, prepared.scheduler_step()


def test_weights_optimizer_schedule_and_loop_are_restored(config):
    student, prepared, saver = trained(config, 3)
    saver.save(3, {"missing_in_a_row": 2})
    expected = [learn(student, prepared, step) for step in (3, 4)]
    other, other_prepared, other_saver = trained(config, 0)
    checkpoint = other_saver.restore_latest(resume=True)
    assert (checkpoint.step, checkpoint.state["loop"]) == (3, {"missing_in_a_row": 2})
    assert [learn(other, other_prepared, step) for step in (3, 4)] == expected
    for name, value in student.model.named_parameters():
        assert torch.equal(value, dict(other.model.named_parameters())[name]), name


def test_the_score_is_the_mean_of_the_last_steps_and_unknown_metrics_are_refused(config):
    _, _, saver = trained(config, 0)
    for loss in (9.0, 4.0, None, 2.0):
        saver.record_metrics({"loss": loss, "lr": 1.0})
    saver.save(4, {})
    assert latest_checkpoint(config.out).score == 3.0
    with pytest.raises(UsageError, match=r"checkpoints\.metric 'loss' is not a metric of this run; it has lr"):
        saver.record_metrics({"lr": 1.0, "by_place": [1.0]})


def test_a_new_run_does_not_overwrite_the_checkpoints_of_an_old_run(config):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    with pytest.raises(UsageError, match="up to step 2: go on with --resume, set another out, or remove the folder"):
        trained(config, 0)[2].restore_latest(resume=False)


def test_another_models_checkpoint_is_refused(config):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    config.student.freeze = ["vision", "projector"]
    with pytest.raises(UsageError, match=r"another model or another student\.freeze: '.*visual.merger.*' is only"):
        trained(config, 0)[2].restore_latest(resume=True)


def test_changed_data_gives_a_warning(config, capsys):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    _, _, other = trained(config, 0)
    other.data = {"prompts": 9}
    assert other.restore_latest(resume=True).step == 2
    assert "the data changed since step-000002" in capsys.readouterr().err


def test_an_exported_checkpoint_loads_with_from_pretrained(config, tmp_path):
    student, prepared, saver = trained(config, 2)
    config.out.mkdir(parents=True)
    (config.out / "config.yaml").write_text(dump(config))
    saver.save(2, {})
    learn(student, prepared, 2)
    assert run_export(config.out, "last", tmp_path / "export") == 2
    exported = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "export").named_parameters())
    saved = latest_checkpoint(config.out).tensors("learning")
    assert all(torch.equal(exported[name], value) for name, value in saved.items())
    assert set(exported) >= set(saved)


def test_export_refuses_folders_that_are_not_of_a_run(tmp_path):
    with pytest.raises(UsageError, match=r"is not a run.s folder: there is no config\.yaml in it"):
        run_export(tmp_path, "last", tmp_path / "out")
    (tmp_path / "config.yaml").write_text(json.dumps({"out": "x"}))
    with pytest.raises(UsageError, match="is not the config of `vold sft` or `vold train`"):
        run_export(tmp_path, "last", tmp_path / "out")


def test_sft_checkpoints_are_ranked_by_loss():
    keep = SftConfig(out="x", student={"path": "p"}, traces="t", checkpoints={"every": 5, "keep_best": 2}).checkpoints
    assert (keep.metric, keep.mode, keep.every, keep.keep_best) == ("loss", "min", 5, 2)
