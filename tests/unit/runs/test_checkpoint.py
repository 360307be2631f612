"""Checkpoints: incomplete ones are ignored, old ones deleted, runs restored exactly, students exported."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText
from vold_trainer.config import CheckpointsConfig, SftConfig, TrainConfig, dump
from vold_trainer.errors import ResumeRefusedError, RunError, UsageError
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
from vold_trainer.runs.saving import BrokenWeightsError, Saver
from vold_trainer.runs.start import Start
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
    with pytest.raises(UsageError, match=r"has a score: set checkpoints\.keep_best above 0, and checkpoints\.metric"):
        choose_checkpoint(tmp_path, "best", "max")


@pytest.fixture
def config(tmp_path):
    keep = CheckpointsConfig(every=2, keep_last=3, keep_best=1, metric="loss", mode="min", window=2)
    return TrainConfig(out=tmp_path / "run", student={"path": "pocket:student"}, steps=6, checkpoints=keep)


def trained(config, steps):
    """A student after some optimizer steps, its PreparedModel and its Saver."""
    ranks = Ranks(make_accelerator())
    student = load_student(config.student)
    prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, prepared, ranks, {"data.source": "8 rows"})
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
    checkpoint = other_saver.restore(Start(resume=True))
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
    with pytest.raises(UsageError, match="holds a run, up to step 2: go on with it with --resume, delete it with"):
        trained(config, 0)[2].restore(Start())


def test_another_models_checkpoint_is_refused(config):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    config.student.freeze = ["vision", "projector"]
    with pytest.raises(UsageError, match=r"student\.freeze: \['vision'\] -> \['vision', 'projector'\]"):
        trained(config, 0)[2].restore(Start(resume=True))


def test_other_rows_are_refused_unless_the_config_allows_them(config, capsys):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    _, _, other = trained(config, 0)
    other.content = {"data.source": "9 rows"}
    with pytest.raises(ResumeRefusedError, match=r"data\.source: leads to other content.*data\.allow_change=true"):
        other.restore(Start(resume=True))
    config.data.allow_change = True
    assert other.restore(Start(resume=True)).step == 2
    assert "data.source: other content" in capsys.readouterr().err


def test_a_changed_rate_takes_effect_and_an_unchanged_schedule_goes_on_as_it_was(config):
    config.optim.schedule, config.optim.warmup_steps = "cosine", 2
    _, prepared, saver = trained(config, 3)
    saver.save(3, {})
    expected = [group["lr"] for group in prepared.optimizer.param_groups]
    _, same, saver = trained(config, 0)
    saver.restore(Start(resume=True))
    assert [group["lr"] for group in same.optimizer.param_groups] == expected
    config.optim.lr, config.optim.weight_decay, config.optim.betas = 10 * config.optim.lr, 0.5, (0.8, 0.9)
    _, changed, saver = trained(config, 0)
    saver.restore(Start(resume=True))
    assert [group["lr"] for group in changed.optimizer.param_groups] == pytest.approx([10 * lr for lr in expected])
    assert [group["weight_decay"] for group in changed.optimizer.param_groups] == [0.5, 0.0]
    assert [change.key for change in saver.changes] == ["optim.lr", "optim.weight_decay", "optim.betas"]
    assert all(group["betas"] == (0.8, 0.9) for group in changed.optimizer.param_groups)


def test_weights_that_are_not_finite_are_never_saved(config):
    student, _, saver = trained(config, 1)
    saver.save(1, {})
    with torch.no_grad():
        next(p for p in student.model.parameters() if p.requires_grad).view(-1)[0] = torch.nan
    with pytest.raises(BrokenWeightsError, match="the weights after step 2 are not finite"):
        saver.save(2, {})
    with pytest.raises(BrokenWeightsError, match="are not saved"):
        saver.export()
    assert latest_checkpoint(config.out).step == 1
    assert not (config.out / "model").exists()


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_too_many_in_a_row_stop(config, capsys):
    config.optim.max_skipped = 2
    student, prepared, saver = trained(config, 1)
    before = {name: value.clone() for name, value in student.model.named_parameters()}
    moments = [value.clone() for state in prepared.optimizer.state.values() for value in state.values()]
    for step in (1, 2):
        for parameter in student.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, torch.inf if step == 1 else torch.nan)
        prepared.optimizer_step()
        prepared.scheduler_step()
        if step == 1:
            prepared.skipped.report(step + 1)
            saver.save(2, {})
    assert all(torch.equal(value, before[name]) for name, value in student.model.named_parameters())
    after = [value for state in prepared.optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    with pytest.raises(RunError, match=r"2 optimiser steps in a row .*optim\.max_skipped is 2.*--step"):
        prepared.skipped.report(3)
    assert "step 2: the gradient's norm is" in capsys.readouterr().err
    _, resumed, other = trained(config, 0)
    other.restore(Start(resume=True))
    assert resumed.skipped.state() == {"in_a_row": 1, "total": 1}


def test_a_run_goes_on_from_an_earlier_step_and_keeps_the_later_checkpoints(config):
    config.checkpoints.keep_last = 9
    student, prepared, saver = trained(config, 0)
    for step in range(1, 4):
        learn(student, prepared, step - 1)
        saver.save(step, {})
    _, _, other = trained(config, 0)
    assert other.restore(Start(resume=True, step="2")).step == 2
    assert steps(config.out) == [1, 2]
    assert [path.name for path in (config.out / "checkpoints" / "left").iterdir()] == ["step-000003"]
    with pytest.raises(UsageError, match="no checkpoint of step '3': choose last, best, or one of 1, 2"):
        trained(config, 0)[2].restore(Start(resume=True, step="3"))


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


def test_what_runs_did_not_write_beside_their_checkpoints_is_left(tmp_path):
    root = tmp_path / "checkpoints"
    for name in ("good-000400", "my-own", "step-best"):
        (root / name).mkdir(parents=True)
    (root / "step-notes.txt").write_text("")
    write(tmp_path, 1)
    write(tmp_path, 2)
    prune_checkpoints(tmp_path, keep_last=1, keep_best=0, mode="max")
    assert sorted(path.name for path in root.iterdir()) == [
        "good-000400", "my-own", "step-000002", "step-best", "step-notes.txt",
    ]  # fmt: skip


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path, 1) / "learning.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UsageError, match=r"step-000001/learning\.safetensors cannot be read .*--resume --step"):
        latest_checkpoint(tmp_path).tensors("learning")


def test_checkpoints_from_before_a_skipped_step_are_kept(config):
    config.checkpoints.keep_last = 1
    _, prepared, saver = trained(config, 1)
    saver.save(1, {})
    prepared.skipped.record(float("nan"), skipped=True)
    saver.save(2, {})
    assert steps(config.out) == [1, 2]
    prepared.skipped.record(1.0, skipped=False)
    saver.save(3, {})
    assert steps(config.out) == [3]
