"""Values that no model gives: counted, masked, and in no loss and no gradient."""

import math

import numpy as np
import pytest
import torch
from vold_client import CompletionScore
from vold_trainer.data import Example
from vold_trainer.objectives import REGISTRY
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scores import RolloutScore, store_score
from vold_trainer.scoring.teacher_view import TeacherView
from vold_trainer.student.batching import Batch

IDS, K = (5, 6, 7, 8, 9), 3
LOGPROBS = [math.nan, math.inf, 0.5, -math.inf, -1.0]


def stored(mask) -> RolloutScore:
    rollout = Rollout(0, Example("a", ({"role": "user", "content": "?"},), "1"), (1,), IDS, "", False)
    top = np.full((5, K), -1.5, np.float32)
    top[:, 0] = LOGPROBS
    score = CompletionScore(
        "0",
        logprobs=np.array(LOGPROBS, np.float32),
        entropy=np.array([math.inf, 1.0, math.nan, -2.0, 2.0], np.float32),
        top_ids=np.tile(np.arange(K, dtype=np.int32), (5, 1)),
        top_logprobs=top,
    )
    target = RolloutScore()
    view = TeacherView(list(IDS), np.arange(5), np.array(mask))
    store_score(target, rollout, score, view, np.ones(16, bool))
    return target


def test_values_that_no_model_gives_are_counted_where_nothing_is_masked():
    score = stored([True] * 5)
    assert score.invalid == 3 + 3 + 3  # log-probabilities, entropies, top log-probabilities
    np.testing.assert_array_equal(score.teacher_logprobs, np.array([math.nan] * 3 + [-math.inf, -1.0], np.float32))
    np.testing.assert_array_equal(score.entropy, np.array([math.nan, 1.0, math.nan, math.nan, 2.0], np.float32))
    assert np.isnan(score.support_logprobs[:3, 0]).all()
    assert stored([False, False, False, True, True]).invalid == 3 + 3, "a masked value is none of the teacher's faults"


@pytest.mark.parametrize("name", [name for name in REGISTRY if REGISTRY[name]().needs.teacher])
def test_no_loss_and_no_gradient_holds_such_a_value(name):
    objective = REGISTRY[name]()
    rollouts = [Rollout(row, Example("a", (), "1"), (1,), IDS, "", False, np.full(5, -1, np.float32)) for row in (0, 1)]
    scores = [stored([True] * 5), stored([True] * 5)]
    for reward, score in enumerate(scores):
        score.reward, score.correct = float(reward), bool(reward)
    batch = Batch({}, torch.empty(0), torch.tensor(IDS * 2), torch.ones(2, 5, dtype=torch.bool))
    student_N = torch.full((10,), -1.2, requires_grad=True)
    student_NK = torch.full((10, K), -1.2, requires_grad=True)
    scored = ScoredBatch(rollouts, scores, 2)
    _, teacher_NK = scored.support([0, 1])
    inputs = scored.inputs(
        [0, 1], batch, student_N, None, objective.needs, (student_NK, teacher_NK), step=0, max_tokens=5
    )
    loss = objective(inputs).loss
    loss.backward()
    assert loss.isfinite()
    gradients = [value.grad for value in (student_N, student_NK) if value.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
