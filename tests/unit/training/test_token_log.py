"""The mismatch between sampling and training is in the metrics of every step; samples are spread over the step."""

import math

import numpy as np
import pytest
import torch
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scores import RolloutScore
from vold_trainer.student.models import load_student
from vold_trainer.training.means import Means
from vold_trainer.training.token_log import TokenLog, token_metrics

SAMPLED = ([-1.0, -2.0, -0.5], None, [-0.25])
TRAINED = (torch.tensor([-1.5, -1.0, -0.5]), torch.tensor([-9.0, -9.0]), torch.tensor([-0.5]))


def _array(values):
    return None if values is None else np.array(values, np.float32)


def step_metrics(old=None):
    example = Example("a", ({"role": "user", "content": "?"},), "1")
    rollouts = [
        Rollout(row, example, (1,), (2,) * len(trained), "", False, _array(sampled))
        for row, (sampled, trained) in enumerate(zip(SAMPLED, TRAINED, strict=True))
    ]
    scored = ScoredBatch(
        rollouts, [RolloutScore() for _ in rollouts], 1, advantage_std=True, max_tokens=8, overlong=0.0
    )
    log = TokenLog(scored, old)
    log.add([2, 0], torch.cat([TRAINED[2], TRAINED[0]]), torch.ones(4))
    log.add([1], TRAINED[1], torch.ones(2))
    return token_metrics(log.finish())


def test_mismatch_is_the_gap_between_sampling_and_training_where_both_are_known():
    metrics = step_metrics()
    assert metrics["mismatch/k1"] == pytest.approx((0.5 - 1.0 + 0.0 + 0.25) / 4)
    assert metrics["mismatch/abs"] == pytest.approx((0.5 + 1.0 + 0.0 + 0.25) / 4)
    k3 = [math.exp(-gap) - 1 + gap for gap in (0.5, -1.0, 0.0, 0.25)]
    assert metrics["mismatch/k3"] == pytest.approx(sum(k3) / 4)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_figures_of_the_gap_are_of_all_tokens_of_all_processes(parts):
    example = Example("a", ({"role": "user", "content": "?"},), "1")
    gaps = np.array([0.01] * 193 + [-3.0, 2.0, -9.0, np.nan, 4.0, 7.0, -np.inf], np.float32)
    means = []
    for gap in np.array_split(np.random.default_rng(0).permutation(gaps), parts):
        rollouts = [Rollout(0, example, (1,), (2,) * len(gap), "", False)]
        scored = ScoredBatch(rollouts, [RolloutScore(teacher_logprobs=gap - 1)], 1)
        log = TokenLog(scored, gap_cap=3.5)
        log.add([0], torch.full((len(gap),), -1.0), torch.ones(len(gap)))
        means.append(log.finish())
    metrics = token_metrics(Means.joined(means))
    assert metrics["teacher/capped"] == pytest.approx(3 / 198)
    assert 7.0 <= metrics["teacher/gap_p99"] < 7.0 * 1.05
    assert "teacher/capped" not in token_metrics(TokenLog(scored).finish())
    assert metrics["missing/masked_positions"] == 2


def test_an_update_within_the_step_is_no_mismatch():
    old = {0: torch.tensor(SAMPLED[0]), 1: torch.zeros(2), 2: torch.tensor(SAMPLED[2])}
    metrics = step_metrics(old)
    assert metrics["mismatch/k1"] == metrics["mismatch/abs"] == 0.0


def test_samples_are_spread_over_the_prompts_of_the_step():
    """Completions of a prompt are neighbours: the first three of a group of five would be of one prompt."""
    student = load_student(StudentConfig(path="pocket:student"))
    examples = [Example(name, ({"role": "user", "content": "?"},), "1") for name in "abc"]
    rollouts = [Rollout(row, examples[row // 5], (1,), (20,), "", False) for row in range(15)]
    correct = [row in (1, 3, 12, 14) for row in range(15)]
    log = TokenLog(ScoredBatch(rollouts, [RolloutScore(reward=float(ok), correct=ok) for ok in correct], 5))
    log.add(list(range(15)), torch.zeros(15), torch.zeros(15))
    samples = [(sample["id"], sample["correct"]) for sample in log.samples(1, student)]
    assert samples == [("a", True), ("a", True), ("c", True), ("a", False), ("b", False), ("b", False)]
