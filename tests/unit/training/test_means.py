"""Means that add up over processes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.training.means import Means

values = st.lists(st.floats(-10, 10, width=32) | st.just(float("nan")), max_size=20)


@given(parts=st.lists(values, min_size=1, max_size=4))
def test_parts_have_the_mean_of_the_whole(parts):
    joined = Means.joined([_of(part) for part in parts])
    known = [value for part in parts for value in part if value == value]
    assert joined.count("x") == len(known)
    mean = joined.mean("x")
    assert mean is None if not known else abs(mean - sum(known) / len(known)) < 1e-9


def test_positions_are_binned_and_missing_values_left_out():
    means = Means()
    means.add_by_position("position", torch.tensor([1.0, 2.0, 3.0, float("nan")]), 2)
    means.add_by_position("position", torch.tensor([5.0]), 2)
    assert [means.mean("position/0"), means.mean("position/1"), means.mean("position/2")] == [8 / 3, 3.0, None]


def test_the_mean_of_no_values_is_none():
    assert Means().mean("x") is None
    assert _of([]).mean("x") is None


def _of(part):
    means = Means()
    means.add("x", torch.tensor(part, dtype=torch.float32))
    return means
