"""Generation ahead of the policy update, and updates while scores are pending: what changes, and what must not."""

import copy
import math
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from vold_trainer.config import TrainConfig, load
from vold_trainer.errors import ResumeRefusedError
from vold_trainer.files import read_json_lines
from vold_trainer.rollout.hf import HfEngine
from vold_trainer.runs.saving import Saver
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.training import saved_batches, train
from vold_trainer.training.train import run_train
from vold_trainer.training.update import PolicyUpdater

SMALL = (
    *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "steps=4", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "batch.micro=3"),
)
METRICS = ("loss", "reward/mean", "teacher/k2", "grad_norm", "length/mean", "staleness", "mismatch/ratio")


def config(out: Path, teacher, verifier, *overrides: str) -> TrainConfig:
    urls = [f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}"]
    return load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, *overrides])


def metrics(out: Path) -> list[dict]:
    rows = read_json_lines(out / "metrics.jsonl")
    return [{key: row.get(key) for key in METRICS} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_same_runs(one: Path, other: Path) -> None:
    """Up to rounding: a teacher that batches by arrival rounds differently from run to run."""
    for first, second in zip(metrics(one), metrics(other), strict=True):
        assert first == pytest.approx(second, rel=1e-5, abs=1e-6)
    before, after = weights(one), weights(other)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


class OwnEngine(HfEngine):
    """Generates from a copy of the student, which only `sync` updates: an engine with its own weights."""

    own_weights = True

    def __init__(self, student, *, batch=0):
        self.trained = student.model
        super().__init__(copy.copy(student), batch=batch)
        self.student.model = copy.deepcopy(student.model)
        self.calls = []

    def generate(self, *arguments, **options):
        started = time.monotonic()
        rollouts = super().generate(*arguments, **options)
        self.calls.append((self.version, started, time.monotonic()))
        return rollouts

    def sync(self, version):
        self.student.model.load_state_dict(self.trained.state_dict())
        super().sync(version)


@pytest.fixture(scope="module")
def one_ahead(tmp_path_factory, pocket_teacher, verifier):
    """A run that generates one step ahead, with a checkpoint after every step."""
    out = tmp_path_factory.mktemp("ahead") / "run"
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=1", "checkpoints.every=1"))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["batch.size=0", "batch.size=8"])
def test_updating_while_scores_come_changes_no_number(batch, tmp_path, pocket_teacher, verifier, monkeypatch):
    """Not one bit of losses, gradient norms and weights; the teacher's cache gives both runs the same scores."""
    run_train(config(tmp_path / "overlapped", pocket_teacher, verifier, "steps=2", batch))
    post_init = ScoredBatch.__post_init__

    def wait_for_all(self):
        post_init(self)
        self.wait()

    monkeypatch.setattr(ScoredBatch, "__post_init__", wait_for_all)
    run_train(config(tmp_path / "waited", pocket_teacher, verifier, "steps=2", batch))
    assert metrics(tmp_path / "overlapped") == metrics(tmp_path / "waited")
    first, second = weights(tmp_path / "overlapped"), weights(tmp_path / "waited")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_trains_on_rollouts_of_older_weights_and_corrects_for_that(one_ahead):
    rows = metrics(one_ahead)
    assert [row["staleness"] for row in rows] == [0, 1, 1, 1]
    assert rows[0]["mismatch/ratio"] == pytest.approx(1, abs=1e-3)
    assert any(abs(row["mismatch/ratio"] - 1) > 1e-3 for row in rows[1:])  # the weights have moved since
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert "rollout_cap: 2.0" in (one_ahead / "config.yaml").read_text()


def test_the_next_batch_is_generated_before_a_step_updates(one_ahead):
    spans = read_json_lines(one_ahead / "timeline.jsonl")

    def ends(lane: str, step: int) -> list[float]:
        return [span["end"] for span in spans if (span["lane"], span["step"]) == (lane, step)]

    for step in (1, 2, 3):
        assert max(ends("generate", step + 1)) < max(ends("optimise", step))
    assert {span["lane"] for span in spans} >= {"generate", "teacher", "verifier", "optimise", "sync", "checkpoint"}


@pytest.mark.parametrize("done", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_trains_on_the_batches_that_were_generated_ahead(
    done, tmp_path, one_ahead, pocket_teacher, verifier
):
    """Killed right after a checkpoint. The weights that generated the next batch are gone by then."""
    out = tmp_path / "run"
    settings = config(out, pocket_teacher, verifier, "rollout.ahead=1", "checkpoints.every=1")
    save = Saver.save

    class KilledError(Exception):
        pass

    def save_and_die(self, number, *arguments):
        save(self, number, *arguments)
        if number == done:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "save", save_and_die)
        with pytest.raises(KilledError):
            run_train(settings)
    assert (out / "checkpoints" / f"step-{done:06d}" / saved_batches.FILE.format(0)).is_file()
    run_train(settings, resume=True)
    assert_same_runs(out, one_ahead)


@pytest.mark.slow
def test_a_batch_older_than_the_bound_is_generated_again(tmp_path, pocket_teacher, verifier):
    out = tmp_path / "run"
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=2", "checkpoints.every=3", "steps=5"))
    assert [row["staleness"] for row in metrics(out)] == [0, 1, 2, 2, 2]
    shutil.rmtree(out / "checkpoints" / "step-000005")
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=1", "steps=6"), resume=True)
    assert [row["staleness"] for row in metrics(out)] == [0, 1, 2, 0, 1, 1]


@pytest.mark.slow
def test_batches_that_were_generated_ahead_for_other_rows_are_not_trained_on(tmp_path, pocket_teacher, verifier):
    """The rows have the same ids and other texts."""
    out = tmp_path / "run"
    settings = ("rollout.ahead=1", "checkpoints.every=1", "checkpoints.keep_last=9")
    run_train(config(out, pocket_teacher, verifier, *settings))
    assert (out / "checkpoints" / "step-000002" / saved_batches.FILE.format(0)).is_file()
    other = config(out, pocket_teacher, verifier, *settings, "data.seed=1")
    with pytest.raises(ResumeRefusedError, match=r"data\.seed: 0 -> 1: leads to other content"):
        run_train(other, resume=True, step="2")
    other.data.allow_change = True
    run_train(other, resume=True, step="2")
    assert [row["staleness"] for row in metrics(out)] == [0, 1, 0, 1]


def test_an_engine_with_its_own_weights_generates_during_the_update(
    tmp_path, one_ahead, pocket_teacher, verifier, monkeypatch
):
    """The same numbers as generating first: which weights generate a batch does not depend on timing. The update of a
    step and the generation of the next one each wait for the other to begin.
    """
    engines, updates = [], []
    meetings = [threading.Barrier(2, timeout=60) for _ in range(3)]

    class Meeting(OwnEngine):
        def generate(self, *arguments, **options):
            if self.calls:
                meetings[len(self.calls) - 1].wait()
            return super().generate(*arguments, **options)

    def make(options, student):
        engines.append(Meeting(student, batch=options.batch))
        return engines[0]

    def meeting_update(updater, *arguments, **options):
        updates.append(updater)
        if len(updates) <= len(meetings):
            meetings[len(updates) - 1].wait()
        return update(updater, *arguments, **options)

    update = PolicyUpdater.update
    monkeypatch.setattr(PolicyUpdater, "update", meeting_update)
    monkeypatch.setattr(train, "make_engine", make)
    out = tmp_path / "run"
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=1"))
    assert_same_runs(out, one_ahead)
    assert [version for version, _, _ in engines[0].calls] == [0, 0, 1, 2]
    spans = read_json_lines(out / "timeline.jsonl")

    def during(lane: str, step: int) -> tuple[float, float]:
        own = [span for span in spans if (span["lane"], span["step"]) == (lane, step)]
        return min(span["start"] for span in own), max(span["end"] for span in own)

    for step in (1, 2, 3):
        generation, update_span = during("generate", step + 1), during("optimise", step)
        assert generation[0] < update_span[1]
        assert update_span[0] < generation[1]


@pytest.mark.slow
def test_traces_are_never_stale(tmp_path, pocket_teacher, verifier):
    from vold_trainer.coldstart.traces import run_traces
    from vold_trainer.config import TracesConfig

    traces = tmp_path / "traces.jsonl"
    urls = [f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all"]
    run_traces(load(TracesConfig, Path("pocket:traces"), [f"out={traces}", *urls, "data.limit=24"]))
    objective = f"objective={{name: gkd, traces: {traces}, student_share: 0.5}}"
    settings = config(tmp_path / "run", pocket_teacher, verifier, objective, "rollout.ahead=1", "steps=6")
    run_train(settings)
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    trace_steps = [row for row in rows if row.get("objective/on_policy") == 0]
    assert 0 < len(trace_steps) < 6
    assert all(row["staleness"] == 0 for row in trace_steps)
    assert all(row["staleness"] == 1 for row in rows[1:] if row not in trace_steps)
