"""Diagnostics: the overlap against sets, means over known values, and the student's most likely ids."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vold_client import InvalidArgument
from vold_trainer.data import Example
from vold_trainer.errors import RunError
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scores import RolloutScore
from vold_trainer.services.outages import ServiceGoneError
from vold_trainer.student.logprobs import token_logprobs
from vold_trainer.terminal import console
from vold_trainer.training.diagnostics import (
    Diagnostics,
    Measurement,
    add_scores,
    diagnostic_metrics,
    overlap,
    spread_rows,
)
from vold_trainer.training.means import Means


def measurement(failure=None):
    """A measurement without rollouts. failure: the error that its scores raise."""

    def collect():
        raise failure

    return Measurement(ScoredBatch([], [], 1), [], SimpleNamespace(collect=collect, waits=[]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_overlap_is_the_intersection_of_two_sets(seed, positions, width):
    """Each side has K of 8 ids; some of the teacher's are masked."""
    rng = np.random.default_rng(seed)
    ids = [np.stack([rng.permutation(8)[:width] for _ in range(positions)]) for _ in range(2)]
    logprobs = [-rng.exponential(size=(positions, width)).astype(np.float32) for _ in range(2)]
    logprobs[1][rng.random((positions, width)) < 0.3] = np.nan
    common = overlap(*(torch.from_numpy(array) for pair in zip(ids, logprobs, strict=True) for array in pair))
    for n in range(positions):
        known = {int(i): value for i, value in zip(ids[1][n], logprobs[1][n], strict=True) if np.isfinite(value)}
        own = {int(i): value for i, value in zip(ids[0][n], logprobs[0][n], strict=True)}
        if not known:
            assert common.ratio_N[n].isnan()
            assert common.student_mass_N[n].isnan()
            continue
        shared = known.keys() & own.keys()
        assert common.ratio_N[n].item() == pytest.approx(len(shared) / width)
        assert common.student_mass_N[n].item() == pytest.approx(sum(np.exp(own[i]) for i in shared), rel=1e-5)
        assert common.teacher_mass_N[n].item() == pytest.approx(sum(np.exp(known[i]) for i in shared), rel=1e-5)


def test_a_side_with_fewer_ids_sets_the_width():
    student_ids, teacher_ids = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1]])
    common = overlap(student_ids, torch.zeros(1, 4), teacher_ids, torch.zeros(1, 2))
    assert common.ratio_N.tolist() == [1.0]
    assert overlap(student_ids[:0], torch.zeros(0, 4), teacher_ids[:0], torch.zeros(0, 2)).ratio_N.shape == (0,)


def test_means_leave_out_missing_values():
    means = Means()
    means.add("overlap/ratio", torch.tensor([1.0, torch.nan, 0.0]))
    means.add("overlap/ratio", torch.tensor([1.0]))
    means.add("teacher/entropy", torch.tensor([torch.nan]))
    means.add_by_position("overlap/position", torch.tensor([0.0, 1.0] + [0.5] * 18), 10)
    assert diagnostic_metrics(means) == {"overlap/ratio": pytest.approx(2 / 3), "overlap_by_position": [0.5] * 10}


def test_rows_are_spread_over_the_step():
    example = Example(id="1", messages=(), reference="")
    rollouts = [Rollout(row, example, (1,), (2,), "", False) for row in range(9)]
    assert [rollout.row for rollout in spread_rows(rollouts, 3)] == [0, 4, 8]
    assert spread_rows(rollouts, 100) == rollouts
    assert spread_rows([], 3) == []


@pytest.mark.parametrize("grad", [True, False])
def test_the_most_likely_ids_and_the_same_scores_as_without_them(grad):
    torch.manual_seed(0)
    hidden, weight, ids = torch.randn(11, 8), torch.randn(8, 20), torch.randint(20, (11,))
    with torch.set_grad_enabled(grad):
        plain = token_logprobs(hidden, lambda h: h @ weight, ids, temperature=0.7, chunk=4)
        with_top_k = token_logprobs(hidden, lambda h: h @ weight, ids, temperature=0.7, chunk=4, top_k=5)
    expected = (hidden @ weight / 0.7).log_softmax(-1).topk(5, -1)
    assert torch.equal(plain.logprobs_N, with_top_k.logprobs_N)
    assert torch.equal(plain.entropy_N, with_top_k.entropy_N)
    assert plain.top_ids_NK is None
    assert torch.equal(with_top_k.top_ids_NK, expected.indices)
    torch.testing.assert_close(with_top_k.top_logprobs_NK, expected.values)


@pytest.mark.parametrize(
    "failure",
    [
        InvalidArgument("options.top_k: 16 is above the limit of 4"),
        ServiceGoneError("teacher was away for 600 s"),
        RunError("another teacher answered"),
    ],
    ids=["refused", "gone", "changed"],
)
def test_an_error_of_the_teacher_costs_the_metrics_and_not_the_run(failure):
    with console.capture() as capture:
        assert Diagnostics.metrics(SimpleNamespace(ranks=Ranks(make_accelerator())), measurement(failure)) == {}
    assert str(failure) in " ".join(capture.get().split())


def test_the_scores_of_both_sides_are_averaged_by_verdict():
    """One correct, one wrong and one unverified rollout of two positions; the last has no teacher scores."""
    measured = measurement()
    for row in range(3):
        measured.student_entropy[row] = torch.tensor([0.5, 0.5])
        measured.student_ids[row] = torch.tensor([[1, 2], [1, 2]])
        measured.student_logprobs[row] = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    means = Means()
    for row, ids, entropy in ((0, [[1, 2], [2, 1]], 0.25), (1, [[1, 3], [3, 4]], 1.0)):
        score = RolloutScore(
            entropy=np.full(2, entropy, np.float32),
            support_ids=np.array(ids),
            support_logprobs=np.log(np.array([[0.7, 0.2], [0.7, 0.2]], np.float32)),
        )
        add_scores(means, measured, row, row == 0, score)
    add_scores(means, measured, 2, None, RolloutScore())
    metrics = diagnostic_metrics(means)
    assert {key: value for key, value in metrics.items() if "position" not in key} == pytest.approx(
        {
            "teacher/entropy": 0.625,
            "entropy/gap": 0.125,
            "entropy/gap_correct": -0.25,
            "entropy/gap_wrong": 0.5,
            "overlap/ratio": 2.5 / 4,
            "overlap/ratio_correct": 1.0,
            "overlap/ratio_wrong": 0.25,
            "overlap/student_mass": (1 + 1 + 0.6 + 0) / 4,
            "overlap/teacher_mass": (0.9 + 0.9 + 0.7 + 0) / 4,
        }
    )
