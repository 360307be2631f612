"""Checkpoints: whole or passed over, kept as asked, put back as they were, exported as a transformers folder."""

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
from vold_trainer.processes.wrapping import Wrapped
from vold_trainer.runs.checkpoint import begin, best_of, choose, finish, latest, listed, prune
from vold_trainer.runs.export import run_export
from vold_trainer.runs.saving import Saver, random_state, set_random_state
from vold_trainer.student.models import load_student


def write(out, step, score=None):
    return finish(begin(out, step), step, {"learning": {"w": torch.full((64,), float(step))}}, {"score": score})


def steps(out):
    return [one.step for one in listed(out)]


def test_what_is_not_whole_is_passed_over(tmp_path):
    for step in range(1, 7):
        write(tmp_path, step)
    root = tmp_path / "checkpoints"
    cut = root / "step-000006" / "learning.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    (root / "step-000005" / "learning.safetensors").unlink()
    (root / "step-000004" / "state.json").write_text('{"step": 4, "fi')
    (root / "step-000003" / "state.json").write_text("[]")
    begin(tmp_path, 7)  # killed before it was finished
    (root / "step-000008").mkdir()
    assert steps(tmp_path) == [1, 2]
    assert latest(tmp_path).tensors("learning")["w"][0] == 2
    prune(tmp_path, keep_last=1, keep_best=0, mode="max")
    assert [path.name for path in root.iterdir()] == ["step-000002"]


def test_a_step_saved_again_replaces_what_was_there(tmp_path):
    write(tmp_path, 3, score=1.0)
    write(tmp_path, 3, score=2.0)
    assert [(one.step, one.score) for one in listed(tmp_path)] == [(3, 2.0)]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]


def test_no_checkpoints_are_none(tmp_path):
    assert latest(tmp_path) is None
    with pytest.raises(UsageError, match=r"has no whole checkpoint: set checkpoints\.every"):
        choose(tmp_path, "last", "max")


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
    prune(out, keep_last=last, keep_best=best, mode=mode)
    assert steps(out) == sorted(wanted)
    assert len(list((out / "checkpoints").iterdir())) == len(wanted)
    shutil.rmtree(out)


def test_the_best_is_named_by_its_score_and_of_equals_the_later(tmp_path):
    for step, score in enumerate([0.1, 0.7, 0.7, None, 0.2], 1):
        write(tmp_path, step, score)
    assert choose(tmp_path, "best", "max").step == 3
    assert choose(tmp_path, "best", "min").step == 1
    assert choose(tmp_path, "4", "max").step == 4
    assert choose(tmp_path, "last", "max").step == 5
    assert [one.step for one in best_of(listed(tmp_path), 9, "max")] == [3, 2, 5, 1]
    with pytest.raises(UsageError, match="no checkpoint of step '9': choose last, best, or one of 1, 2, 3, 4, 5"):
        choose(tmp_path, "9", "max")


def test_a_run_without_scores_has_no_best(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(UsageError, match=r"has a score: set checkpoints\.metric"):
        choose(tmp_path, "best", "max")


def test_random_numbers_go_on_where_they_were():
    def draw():
        return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()

    draw()
    state = random_state()
    first = draw()
    draw()
    set_random_state(state)
    assert draw() == first


@pytest.fixture
def config(tmp_path):
    keep = CheckpointsConfig(every=2, keep_last=3, keep_best=1, metric="loss", mode="min", window=2)
    return TrainConfig(out=tmp_path / "run", student={"path": "pocket:student"}, steps=6, checkpoints=keep)


def trained(config, steps):
    """A student with some optimiser steps behind it, and what saves it."""
    ranks = Ranks(make_accelerator())
    student = load_student(config.student)
    wrapped = Wrapped(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, wrapped, ranks, {"prompts": 8})
    for step in range(steps):
        learn(student, wrapped, step)
    return student, wrapped, saver


def learn(student, wrapped, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in student.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    norm = wrapped.step()
    return norm, wrapped.advance()


def test_weights_moments_schedule_and_loop_come_back(config):
    student, wrapped, saver = trained(config, 3)
    saver.save(3, {"missing_in_a_row": 2})
    expected = [learn(student, wrapped, step) for step in (3, 4)]
    other, again, restored = trained(config, 0)
    found = restored.begin(resume=True)
    assert (found.step, found.state["loop"]) == (3, {"missing_in_a_row": 2})
    assert [learn(other, again, step) for step in (3, 4)] == expected
    for name, value in student.model.named_parameters():
        assert torch.equal(value, dict(other.model.named_parameters())[name]), name


def test_the_score_is_the_mean_of_the_last_steps_and_missing_figures_are_named(config):
    _, _, saver = trained(config, 0)
    for loss in (9.0, 4.0, None, 2.0):
        saver.saw({"loss": loss, "lr": 1.0})
    saver.save(4, {})
    assert latest(config.out).score == 3.0
    with pytest.raises(UsageError, match=r"checkpoints\.metric 'loss' is no figure of this run; it has lr"):
        saver.saw({"lr": 1.0, "by_place": [1.0]})


def test_a_new_run_does_not_write_over_an_old_ones_checkpoints(config):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    with pytest.raises(UsageError, match="up to step 2: go on with --resume, set another out, or remove the folder"):
        trained(config, 0)[2].begin(resume=False)


def test_another_models_checkpoint_is_refused(config):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    config.student.freeze = ["vision", "projector"]
    with pytest.raises(UsageError, match=r"another model or another student\.freeze: '.*visual.merger.*' is only"):
        trained(config, 0)[2].begin(resume=True)


def test_other_data_is_said_and_does_not_stop_a_run(config, capsys):
    _, _, saver = trained(config, 0)
    saver.save(2, {})
    _, _, other = trained(config, 0)
    other.data = {"prompts": 9}
    assert other.begin(resume=True).step == 2
    assert "the data changed since step-000002" in capsys.readouterr().err


def test_an_exported_checkpoint_loads_with_from_pretrained(config, tmp_path):
    student, wrapped, saver = trained(config, 2)
    config.out.mkdir(parents=True)
    (config.out / "config.yaml").write_text(dump(config))
    saver.save(2, {})
    learn(student, wrapped, 2)
    assert run_export(config.out, "last", tmp_path / "export") == 2
    exported = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "export").named_parameters())
    saved = latest(config.out).tensors("learning")
    assert all(torch.equal(exported[name], value) for name, value in saved.items())
    assert set(exported) >= set(saved)


def test_export_names_what_is_no_run(tmp_path):
    with pytest.raises(UsageError, match=r"is no run.s folder: there is no config\.yaml in it"):
        run_export(tmp_path, "last", tmp_path / "out")
    (tmp_path / "config.yaml").write_text(json.dumps({"out": "x"}))
    with pytest.raises(UsageError, match="is not the config of `vold sft` or `vold train`"):
        run_export(tmp_path, "last", tmp_path / "out")


def test_sft_is_judged_by_its_loss():
    keep = SftConfig(out="x", student={"path": "p"}, traces="t", checkpoints={"every": 5, "keep_best": 2}).checkpoints
    assert (keep.metric, keep.mode, keep.every, keep.keep_best) == ("loss", "min", 5, 2)
