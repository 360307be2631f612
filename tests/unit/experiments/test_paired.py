"""Differences seed by seed and the sign test, against numbers worked out by hand and against enumeration."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.experiments.paired import compare, sign_test


def test_differences_are_of_the_seeds_that_both_rows_have() -> None:
    paired = compare({1: 0.5, 2: 0.6, 3: 0.9}, {3: 0.5, 1: 0.4, 4: 0.0})
    assert paired is not None
    assert (paired.n, paired.above, paired.below) == (2, 2, 0)
    assert paired.mean == pytest.approx(0.25)
    assert paired.error == pytest.approx(0.15)
    assert paired.p == pytest.approx(0.5)


def test_one_pair_has_no_error_and_no_pair_no_comparison() -> None:
    paired = compare({1: 0.5}, {1: 0.25})
    assert paired is not None
    assert paired.error is None
    assert paired.describe() == "+25.0, 1 of 1"
    assert compare({1: 0.5}, {2: 0.5}) is None


@given(above=st.integers(0, 6), below=st.integers(0, 6))
def test_the_sign_test_counts_splits_at_least_as_uneven(above: int, below: int) -> None:
    n = above + below
    uneven = sum(abs(2 * sum(signs) - n) >= abs(above - below) for signs in product((0, 1), repeat=n))
    assert sign_test(above, below) == pytest.approx(min(1.0, uneven / 2**n))
