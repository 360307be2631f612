"""Answers that are equal to a reference by construction are paid, and answers that differ by construction are not."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verifier_neighbours import KINDS
from vold_verifier.engine import worker
from vold_verifier.mathematics import magnitude
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.code import outputs_equal, values_equal
from vold_verifier.verifiers.math import MathVerifier
from vold_verifier.verifiers.numeric import NumericVerifier

MATH, NUMERIC = MathVerifier(), NumericVerifier()
QUANTITIES = ("units", "temperatures", "compound_quantities", "currencies", "scale_words", "words_after_a_number")


def is_paid(verifier: MathVerifier | NumericVerifier, answer: str, reference: str) -> bool:
    with worker.Timer(5.0):
        return verifier.check(Item(rf"So \boxed{{{answer}}}.", reference), verifier.parameters()).correct


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_equal_answers_are_paid_and_different_answers_are_not(kind, seed):
    drawn = KINDS[kind](Random(seed))
    assert [answer for answer in drawn.paid if not is_paid(MATH, answer, drawn.reference)] == [], drawn.reference
    assert [answer for answer in drawn.refused if is_paid(MATH, answer, drawn.reference)] == [], drawn.reference


@pytest.mark.parametrize("kind", QUANTITIES)
@given(st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_numeric_pays_for_the_same_quantities(kind, seed):
    drawn = KINDS[kind](Random(seed))
    assert [answer for answer in drawn.paid if not is_paid(NUMERIC, answer, drawn.reference)] == [], drawn.reference
    assert [answer for answer in drawn.refused if is_paid(NUMERIC, answer, drawn.reference)] == [], drawn.reference


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**3))
def test_code_compares_integers_exactly(expected, difference):
    other = expected + difference
    assert values_equal(expected, expected)
    assert not values_equal(other, expected)
    assert not values_equal([1, {"n": other}], [1, {"n": expected}])
    assert outputs_equal(f"a {expected}", f"a  {expected}", "tokens")
    assert not outputs_equal(f"a {other}", f"a {expected}", "tokens")


@given(st.integers(1, 10**15), st.floats(1e-9, 1e-7))
def test_code_gives_a_float_no_more_room_beside_an_integer_than_beside_a_float(integer, noise):
    assert values_equal(float(integer), integer)
    assert not values_equal(integer + 0.5, integer)
    assert not values_equal(integer, float(integer + 1))
    large = 2 * integer + 2**60 + 1  # no float has this value
    assert not values_equal(float(large), large)
    assert values_equal(0.3, 0.1 + 0.2)
    assert values_equal(3 + noise / 1e3, 3)
    assert outputs_equal(f"{3 + noise}", "3", "tokens")


bases, exponents = st.integers(2, 40), st.integers(0, 400)


@given(bases, exponents, bases, exponents, st.integers(-3, 3))
def test_sizes_are_apart_only_for_different_values_and_always_for_huge_ones(a, n, b, m, shift):
    first, second = a**n + shift, b**m - shift
    texts = f"{a}^{{{n}}}+({shift})", f"{b}^{{{m}}}-({shift})"
    apart = magnitude.are_apart(*texts)
    assert not (apart and first == second)
    assert not magnitude.are_apart(texts[0], texts[0])
    smaller, larger = sorted((abs(first), abs(second)))
    if smaller and larger > 10**14 and larger > 10**11 * smaller:
        assert apart


@pytest.mark.parametrize("answer", ["9^{9^{9}}+-33", "9^{9^{9}}--33", "-33-+9^{9^{9}}", r"9^{9^{9}} \cdot (-2+-1)"])
def test_the_size_is_estimated_with_several_signs_in_a_row(answer):
    assert magnitude.are_apart("-33", answer)
    assert not magnitude.are_apart("-36", "-33+-3")
    assert not magnitude.are_apart("36", "33--3")


@pytest.mark.parametrize("spelling", ["6.02e23", r"6.02 \times 10^{23}", "602 000 000 000 000 000 000 000", "6.02E+23"])
def test_the_spellings_of_a_large_number_are_not_apart(spelling):
    for other in ("6.02*10^23", "602000000000000000000000", r"\frac{602}{10^{-21}}"):
        assert not magnitude.are_apart(spelling, other)
        assert not magnitude.are_apart(other, spelling)
