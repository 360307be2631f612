"""Numbers are parsed exactly: every spelling of a number is equal to every other, and to no other number."""

from decimal import Context
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from vold_verifier.mathematics import numbers
from vold_verifier.reading.text import symbols_to_latex
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.numeric import NumericParameters, NumericVerifier

NUMERIC = NumericVerifier()


def check(answer: str, reference: str, **parameters: object) -> bool:
    return NUMERIC.check(Item(rf"\boxed{{{answer}}}", reference), NumericParameters(**parameters)).correct


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-42", -42),
        ("+7", 7),
        ("1,234,567", 1234567),
        ("1 000", 1000),
        (r"1\,000", 1000),
        ("1{,}000", 1000),
        (".5", Fraction(1, 2)),
        ("3.", 3),
        ("1e3", 1000),
        ("1.5E-2", Fraction(15, 1000)),
        (r"1.5 \times 10^{3}", 1500),
        ("10^4", 10000),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac34", Fraction(-3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("2 1/2", Fraction(5, 2)),
        ("$5", 5),
        (r"\$5.50", Fraction(11, 2)),
        ("$42$", 42),
        (r"\text{42}", 42),
        ("50%", 50),
        ("12 apples", 12),
        (r"12\text{ cm}", 12),
        ("90^{\\circ}", 90),
        ("5 million", 5_000_000),
        ("½", Fraction(1, 2)),
        ("１２", 12),
    ],
)
def test_common_notations_of_numbers_are_parsed(text, value):
    number = numbers.parse(symbols_to_latex(text), with_unit=True)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1,23",
        "12,34,567",
        "1.2.3",
        "7 or 8",
        r"7\text{ or 8}",
        "3/0",
        "1e99999",
        "1/2/3",
        "--1",
        "4 5",
        "x",
        "3x",
        "2ab",
    ],
)
def test_a_text_that_is_not_clearly_one_number_is_none(text):
    assert numbers.parse(symbols_to_latex(text), with_unit=True) is None


integers = st.integers(min_value=-(10**15), max_value=10**15)


def renderings(n: int) -> list[str]:
    return [
        str(n),
        f"{n:,}",
        f"{n:,}".replace(",", r"\,"),
        f"{n}.0",
        f"${n}$",
        rf"\frac{{{2 * n}}}{{2}}",
        f"{3 * n}/3",
        f"{n} km",
    ]


@given(integers, st.data())
def test_an_integer_equals_itself_in_every_rendering(n, data):
    first, second = data.draw(st.sampled_from(renderings(n))), data.draw(st.sampled_from(renderings(n)))
    assert check(first, second)


@given(integers, integers, st.data())
def test_different_integers_are_different_in_every_rendering(n, m, data):
    assume(n != m)
    assert not check(data.draw(st.sampled_from(renderings(n))), data.draw(st.sampled_from(renderings(m))))


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=4),
    st.integers(-9, 9),
)
def test_scientific_notation_is_exact(decimal, shift):
    mantissa = decimal.scaleb(-shift, Context(prec=50))  # libraries set the thread's own context to less
    assert check(f"{mantissa:f}e{shift}", f"{decimal:f}")
    assert check(rf"{mantissa:f} \times 10^{{{shift}}}", f"{decimal:f}")


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_fractions_are_equal_exactly_when_their_values_are(a, b):
    assert check(f"{a.numerator}/{a.denominator}", rf"\frac{{{b.numerator}}}{{{b.denominator}}}") == (a == b)


def test_a_long_rounding_is_the_number_and_a_short_one_is_not():
    assert check("0.333333", "1/3")
    assert check("0.6666667", "2/3")
    assert not check("0.33", "1/3")
    assert not check("0.0000001", "0.0000002")
    assert not check("1000000.4", "1000000")


@pytest.mark.parametrize(
    ("answer", "reference", "parameters", "correct"),
    [
        ("100", "100.5", {"relative_tolerance": 0.01}, True),
        ("100", "102", {"relative_tolerance": 0.01}, False),
        ("0", "0.005", {"absolute_tolerance": 0.01}, True),
        ("-5", "5", {"relative_tolerance": 0.5}, False),
        ("3.14", "3.14159", {"absolute_tolerance": 0.002}, True),
        ("25%", "0.25", {}, True),
        ("25%", "25", {}, True),
        ("5 m", "5 cm", {}, False),
        ("5 m", "5 cm", {"relative_tolerance": 0.1}, False),
        ("5 meters", "5 m", {}, True),
        ("5 apples", "5 pears", {}, True),
        ("5 apples", "5", {"units": "refuse"}, False),
        ("x = 5", "5", {}, True),
    ],
)
def test_tolerances_and_units(answer, reference, parameters, correct):
    assert check(answer, reference, **parameters) is correct


def test_a_reference_that_is_no_number_is_an_error():
    with pytest.raises(BadReferenceError, match="not a number: 'many'"):
        check("4", "many")


@given(st.text(max_size=80))
def test_any_text_is_parsed_without_failing(text):
    numbers.parse(symbols_to_latex(text), with_unit=True)
    NUMERIC.check(Item(text, "1"), NumericParameters())
