"""How far the engine that drew and the weights that learn are apart, as it is logged."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vold_trainer.rollout.base import Rollout
from vold_trainer.token_log import TokenLog


def rollout(row: int, logprobs: list[float] | None) -> Rollout:
    drawn = None if logprobs is None else np.array(logprobs, np.float32)
    return Rollout(row, None, (1,), tuple(range(3 - row)), "", False, logprobs=drawn)


def test_mismatch_is_of_the_tokens_whose_log_probability_was_kept():
    log = TokenLog(SimpleNamespace(rollouts=[rollout(0, [-1.0, -2.0, -3.0]), rollout(1, None)]))
    log.add([1, 0], torch.tensor([-9.0, -9.0, -1.5, -2.0, -2.75]), torch.zeros(5))
    gaps = [-0.5, 0.0, 0.25]
    assert log._mismatch() == pytest.approx(
        {"mismatch/abs": 0.25, "mismatch/max": 0.5, "mismatch/k3": sum(math.exp(g) - 1 - g for g in gaps) / 3}
    )


def test_nothing_is_logged_where_nothing_was_kept():
    log = TokenLog(SimpleNamespace(rollouts=[rollout(0, None)]))
    log.add([0], torch.zeros(3), torch.zeros(3))
    assert log._mismatch() == {}
