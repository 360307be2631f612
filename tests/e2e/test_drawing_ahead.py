"""RolloutGenerator ahead of learning, and learning while scores still come: what changes with it, and what must not."""

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
from vold_trainer.files import read_json_lines
from vold_trainer.rollout.hf import HfEngine
from vold_trainer.runs.saving import Saver
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.training import pending_scores as pending
from vold_trainer.training import train as grpo
from vold_trainer.training.train import run_train
from vold_trainer.training.update import PolicyUpdater

SMALL = (
    *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "steps=4", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "batch.micro=3"),
)
FIGURES = ("loss", "reward/mean", "teacher/k2", "grad_norm", "length/mean", "staleness", "mismatch/ratio")


def config(out: Path, teacher, verifier, *overrides: str) -> TrainConfig:
    urls = [f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}"]
    return load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, *overrides])


def figures(out: Path) -> list[dict]:
    rows = read_json_lines(out / "metrics.jsonl")
    return [{key: row.get(key) for key in FIGURES} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_same_runs(one: Path, other: Path) -> None:
    """Up to rounding: a teacher that batches by arrival rounds differently from run to run."""
    for first, second in zip(figures(one), figures(other), strict=True):
        assert first == pytest.approx(second, rel=1e-5, abs=1e-6)
    before, after = weights(one), weights(other)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


class OwnEngine(HfEngine):
    """Draws from a copy of the student, which only `sync` brings up to date: an engine of its own, in this process."""

    own_weights = True

    def __init__(self, student, *, batch=0):
        self.learning = student.model
        super().__init__(copy.copy(student), batch=batch)
        self.student.model = copy.deepcopy(student.model)
        self.drawn = []

    def generate(self, *arguments, **options):
        started = time.monotonic()
        found = super().generate(*arguments, **options)
        self.drawn.append((self.version, started, time.monotonic()))
        return found

    def sync(self, version):
        self.student.model.load_state_dict(self.learning.state_dict())
        super().sync(version)


@pytest.fixture(scope="module")
def one_ahead(tmp_path_factory, pocket_teacher, verifier):
    """A run that draws one step ahead, with a checkpoint after every step."""
    out = tmp_path_factory.mktemp("ahead") / "run"
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=1", "checkpoints.every=1"))
    return out


@pytest.mark.parametrize("batch", ["batch.size=0", "batch.size=8"])
def test_learning_while_scores_come_changes_no_number(batch, tmp_path, pocket_teacher, verifier, monkeypatch):
    """Not one bit of losses, gradient norms and weights; the teacher's cache gives both runs the same answers."""
    run_train(config(tmp_path / "overlapped", pocket_teacher, verifier, "steps=2", batch))
    made = ScoredBatch.__post_init__

    def all_at_once(self):
        made(self)
        self.wait()

    monkeypatch.setattr(ScoredBatch, "__post_init__", all_at_once)
    run_train(config(tmp_path / "waited", pocket_teacher, verifier, "steps=2", batch))
    assert figures(tmp_path / "overlapped") == figures(tmp_path / "waited")
    first, second = weights(tmp_path / "overlapped"), weights(tmp_path / "waited")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_learns_from_what_older_weights_drew_and_weighs_it_for_that(one_ahead):
    rows = figures(one_ahead)
    assert [row["staleness"] for row in rows] == [0, 1, 1, 1]
    assert rows[0]["mismatch/ratio"] == pytest.approx(1, abs=1e-3)
    assert any(abs(row["mismatch/ratio"] - 1) > 1e-3 for row in rows[1:])  # the weights have moved since
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert "rollout_cap: 2.0" in (one_ahead / "config.yaml").read_text()


def test_the_next_batch_is_drawn_and_scored_before_a_step_learns(one_ahead):
    spans = read_json_lines(one_ahead / "timeline.jsonl")

    def ends(lane: str, step: int) -> list[float]:
        return [span["end"] for span in spans if (span["lane"], span["step"]) == (lane, step)]

    for step in (1, 2, 3):
        assert max(ends("generate", step + 1)) < max(ends("optimise", step))
    assert {span["lane"] for span in spans} >= {"generate", "teacher", "verifier", "optimise", "sync", "checkpoint"}


@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_run_learns_from_the_batches_that_were_drawn_ahead(
    done, tmp_path, one_ahead, pocket_teacher, verifier
):
    """Killed right after a checkpoint. The weights that drew the next batch are gone by then."""
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
    assert (out / "checkpoints" / f"step-{done:06d}" / pending.FILE.format(0)).is_file()
    run_train(settings, resume=True)
    assert_same_runs(out, one_ahead)


def test_a_batch_older_than_the_bound_is_drawn_again(tmp_path, pocket_teacher, verifier):
    out = tmp_path / "run"
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=2", "checkpoints.every=3", "steps=5"))
    assert [row["staleness"] for row in figures(out)] == [0, 1, 2, 2, 2]
    shutil.rmtree(out / "checkpoints" / "step-000005")
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=1", "steps=6"), resume=True)
    assert [row["staleness"] for row in figures(out)] == [0, 1, 2, 0, 1, 1]


def test_an_engine_with_its_own_weights_draws_while_the_student_learns(
    tmp_path, one_ahead, pocket_teacher, verifier, monkeypatch
):
    """The same numbers as drawing first: which weights draw what does not depend on when. Learning from a step and
    drawing the next one each wait for the other to be under way.
    """
    engines, learned = [], []
    meetings = [threading.Barrier(2, timeout=60) for _ in range(3)]

    class Meeting(OwnEngine):
        def generate(self, *arguments, **options):
            if self.drawn:
                meetings[len(self.drawn) - 1].wait()
            return super().generate(*arguments, **options)

    def make(options, student):
        engines.append(Meeting(student, batch=options.batch))
        return engines[0]

    def update(learner, *arguments, **options):
        learned.append(learner)
        if len(learned) <= len(meetings):
            meetings[len(learned) - 1].wait()
        return usual(learner, *arguments, **options)

    usual = PolicyUpdater.update
    monkeypatch.setattr(PolicyUpdater, "update", update)
    monkeypatch.setattr(grpo, "make_engine", make)
    out = tmp_path / "run"
    run_train(config(out, pocket_teacher, verifier, "rollout.ahead=1"))
    assert_same_runs(out, one_ahead)
    assert [version for version, _, _ in engines[0].drawn] == [0, 0, 1, 2]
    spans = read_json_lines(out / "timeline.jsonl")

    def during(lane: str, step: int) -> tuple[float, float]:
        own = [span for span in spans if (span["lane"], span["step"]) == (lane, step)]
        return min(span["start"] for span in own), max(span["end"] for span in own)

    for step in (1, 2, 3):
        drawing, learning = during("generate", step + 1), during("optimise", step)
        assert drawing[0] < learning[1]
        assert learning[0] < drawing[1]


def test_given_completions_are_never_stale(tmp_path, pocket_teacher, verifier):
    from vold_trainer.coldstart.traces import run_traces
    from vold_trainer.config import TracesConfig

    traces = tmp_path / "traces.jsonl"
    urls = [f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all"]
    run_traces(load(TracesConfig, Path("pocket:traces"), [f"out={traces}", *urls, "data.limit=24"]))
    objective = f"objective={{name: gkd, traces: {traces}, student_share: 0.5}}"
    settings = config(tmp_path / "run", pocket_teacher, verifier, objective, "rollout.ahead=1", "steps=6")
    run_train(settings)
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    given = [row for row in rows if row.get("objective/on_policy") == 0]
    assert 0 < len(given) < 6
    assert all(row["staleness"] == 0 for row in given)
    assert all(row["staleness"] == 1 for row in rows[1:] if row not in given)
