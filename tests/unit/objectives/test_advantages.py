"""Group advantages, the overlong penalty and the selection of groups, by hand."""

import math

import pytest
import torch
from vold_trainer.objectives.advantages import group_advantages, informative_groups, overlong_penalty, unsolved_groups


def test_advantages_are_centred_and_scaled_by_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, math.nan, math.nan]])
    found = group_advantages(rewards, delta=0.0)
    assert found[0].tolist() == pytest.approx([3**0.5 / 2, -(3**0.5) / 2, -(3**0.5) / 2, 3**0.5 / 2])
    assert group_advantages(rewards)[1].tolist() == [0.0] * 4
    assert found[2].tolist() == pytest.approx([2**-0.5, -(2**-0.5), 0.0, 0.0])
    assert group_advantages(rewards, divide_by_std=False)[0].tolist() == [0.5, -0.5, -0.5, 0.5]


def test_a_lone_reward_gives_no_advantage():
    assert group_advantages(torch.tensor([[1.0, math.nan]])).tolist() == [[0.0, 0.0]]


def test_an_overlong_completion_loses_reward_linearly():
    lengths = torch.tensor([1, 80, 90, 100])
    assert overlong_penalty(lengths, 100, 0.2).tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0])
    assert overlong_penalty(lengths, 100, 0.0).tolist() == [0.0] * 4


def test_groups_are_informative_or_unsolved_only_where_that_is_known():
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, nan], [1.0, nan], [nan, nan]])
    correct = rewards == 1
    assert informative_groups(rewards, correct).tolist() == [True, False, False, False, False, False]
    assert unsolved_groups(rewards, correct).tolist() == [False, False, True, False, False, False]
