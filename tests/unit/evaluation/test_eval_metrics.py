"""Intervals, pass@k, maj@k and the bootstrap against closed forms and exhaustive enumeration."""

import math
from itertools import combinations, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.evaluation.metrics import bootstrap, maj_at_k, majority, mean, pass_at_k, wilson


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_completion(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 400), st.data())
def test_pass_at_k_equals_the_published_formula(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - correct, k) / math.comb(n, k)
    assert pass_at_k(n, correct, k) == pytest.approx(exact, abs=1e-9)
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_refuses_impossible_counts(n, correct, k):
    with pytest.raises(ValueError, match=r"pass@|completions cannot be right"):
        pass_at_k(n, correct, k)


def test_a_tied_majority_is_shared_and_abstentions_do_not_vote():
    assert majority(["4", "4", "5"], "4") == 1
    assert majority(["4", "5", "5"], "4") == 0
    assert majority(["4", "5"], "4") == 0.5
    assert majority(["4", "5", "6", None, None, None], "4") == pytest.approx(1 / 3)
    assert majority([None, None], "4") == 0
    assert majority([], "4") == 0


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_maj_at_k_is_unbiased(k):
    """The mean over all orders of the completions equals the mean over all subsets of k."""
    votes = ["r", "r", "a", "a", None]
    orders = list(permutations(votes))
    subsets = list(combinations(votes, k))
    expected = mean([majority(subset, "r") for subset in subsets])
    assert mean([maj_at_k(order, "r", k) for order in orders]) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["r", "a", "b"]), min_size=1, max_size=12))
def test_maj_at_1_is_the_mean_and_maj_at_n_is_one_vote(votes):
    assert maj_at_k(votes, "r", 1) == pytest.approx(votes.count("r") / len(votes))
    assert maj_at_k(votes, "r", len(votes)) == majority(votes, "r")
    with pytest.raises(ValueError, match="maj@"):
        maj_at_k(votes, "r", len(votes) + 1)


def test_the_bootstrap_equals_the_enumeration_of_all_resamples():
    values = [0.0, 1.0, 1.0, 1.0]
    means = sorted(sum(resample) / 4 for resample in product(values, repeat=4))
    exact = means[int(0.025 * len(means))], means[int(0.975 * len(means))]
    assert bootstrap(values, resamples=20_000) == exact


def test_the_bootstrap_of_a_share_is_close_to_the_binomial_interval():
    low, high = bootstrap([1.0] * 60 + [0.0] * 40, resamples=20_000, seed=3)
    assert (low, high) == (pytest.approx(0.50, abs=0.011), pytest.approx(0.69, abs=0.011))
    assert bootstrap([1.0] * 60 + [0.0] * 40, resamples=20_000, seed=3) == (low, high)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_bootstrap_interval_lies_within_the_values(values):
    low, high = bootstrap(values, resamples=200)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_many_problems_are_resampled_in_chunks():
    values = [0.0, 1.0] * 30_000
    low, high = bootstrap(values, resamples=300)
    assert 0.49 < low < 0.5 < high < 0.51


def test_metrics_without_values():
    assert math.isnan(mean([]))
    assert all(map(math.isnan, bootstrap([])))
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_solves_its_equation():
    """The ends of the interval satisfy |share - p| = z sqrt(p (1 - p) / n)."""
    for correct, n in ((0, 10), (3, 10), (10, 10), (250, 500)):
        for p in wilson(correct, n):
            assert 0 <= p <= 1
            assert abs(correct / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-7)
