"""Mathematical equality, case by case, with cases that graders are known to decide wrongly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_proto.v1 import verifier_pb2
from vold_verifier import registry
from vold_verifier.engine import worker
from vold_verifier.reading import bounds
from vold_verifier.sandbox.tripwire import Tripwire
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.math import MathParameters, MathVerifier

MATH = MathVerifier()
VERIFIERS = registry.load()

EQUAL = [
    ("5", "5"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{5}{2}", "2½"),
    ("7/3", "2 1/3"),
    ("1000", "1e3"),
    ("1000", r"1\,000"),
    ("1000", "10^3"),
    ("12", "１２"),
    ("1,000,000", "1000000"),
    ("-1", "−1"),
    ("3", "x = 3"),
    ("3", "3 = x"),
    ("x = 3", "3"),
    ("x^2", "x²"),
    ("x^2+2x+1", "(x+1)^2"),
    ("x^2+2x+1", "x^2 + 2*x + 1"),
    ("y = 2x+3", "y - 2x = 3"),
    ("x^2+y^2=1", "y^2+x^2=1"),
    (r"\frac{\sqrt{3}}{2}", "√3/2"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{\sqrt{3}}{3} \approx 0.577"),
    (r"\frac{\pi}{2}", "π/2"),
    ("sin(x)", r"\sin x"),
    ("sqrt(2)", r"\sqrt{2}"),
    (r"\sqrt{2}", "1.414214"),
    ("1/3", "0.333333"),
    ("25%", "0.25"),
    ("10", r"10\%"),
    ("90", r"90^\circ"),
    (r"5\text{ cm}", "5 centimeters"),
    ("1,2", "2,1"),
    (r"\{1,2\}", "1, 2"),
    ("2,3", r"x=2 \text{ and } x=3"),
    ("[1,2)", r"1 \le x < 2"),
    (r"x\le3", r"(-\infty,3]"),
    ("x>3", "3<x"),
    (r"(-1,1)\cup(2,3)", r"(2,3)\cup(-1,1)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ("3+4i", "4i+3"),
    ("120", "5!"),
    ("1011_2", "1011_{2}"),
    (r"\text{East}", "east"),
    ("yes", "Yes."),
    ("2", r"17 \bmod 5 = 2"),
    ("1", r"\lim_{x \to 0} \frac{\sin x}{x} = 1"),
    ("10", r"\binom{5}{2} = 10"),
]

DIFFERENT = [
    ("5", "5.001"),
    ("1000000", "1000001"),
    ("100000", "100000.4"),
    ("1/3", "0.33"),
    (r"\sqrt{2}", "1.41"),
    (r"2\pi", "6.28"),
    ("0.0000001", "0.0000002"),
    ("10^{-7}", r"2\cdot 10^{-7}"),
    ("1", "1 + 10^{-20}"),
    ("2", "1 = 2"),
    ("42", r"\int_0^{42} 1\,dx"),
    ("5050", r"\sum_{k=1}^{100} k"),
    ("3", r"\frac{d}{dx} 3x"),
    ("5 cm", "5 m"),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt{2}\text{ m}"),
    ("1011_2", "1011"),
    ("1011_2", "1011_3"),
    ("east", "seat"),
    ("yes", "no"),
    ("7", "7 or 8"),
    ("7", r"7\text{ or 8}"),
    ("3", "3x"),
    ("3", "3xyz"),
    ("7", "7, 8"),
    ("7", r"\{7, 8\}"),
    ("(1,2)", "(2,1)"),
    (r"\sqrt{67},-\sqrt{85}", r"\sqrt{67}"),
    ("x=5", "y=5"),
    ("x>3", r"x\ge 3"),
    ("a/b+c", "a/(b+c)"),
    (r"\sqrt{x^2}", "x"),
    (r"\infty", r"-\infty"),
    ("x+1", "x+1=0"),
    ("12", "1 2"),
    ("3", "3/0"),
    ("25", r"2.5\%"),
    ("x + y - z + 2 = 0", "5x - 7y + 11z + 4 = 0"),
]

BOMBS = [
    "9^{9^{9^9}}",
    "9^9^9^9",
    "10**10**10",
    "9999999!",
    "3!!!!",
    "2^{99999}",
    "1e999999",
    r"\binom{1000000000}{500000000}",
    "(" * 50 + "3" + ")" * 50,
    "{" * 60 + "3" + "}" * 60,
    "1" * 900,
    "x+" * 2000 + "3",
    "3\x003",
]


def check(answer: str, reference: str):
    return MATH.check(Item(rf"\boxed{{{answer}}}", reference), MathParameters())


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal_answers_are_correct(reference, answer):
    verdict = check(answer, reference)
    assert verdict.correct, verdict.reason
    assert verdict.reward == 1.0


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different_answers_are_wrong(reference, answer):
    verdict = check(answer, reference)
    assert not verdict.correct, verdict.reason
    assert verdict.reward == 0.0


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:12])
def test_expensive_answers_are_refused_unparsed(bomb):
    assert not check(bomb, "3").correct
    assert bounds.violation(bomb) is not None


@pytest.mark.parametrize(
    "harmless", ["2^{10}", "x^{12}", "e^{x^2}", "10^{100}", "20!", "((((1))))", r"\frac{a^2}{b^{2n}}"]
)
def test_ordinary_mathematics_is_within_bounds(harmless):
    assert bounds.violation(harmless) is None


@pytest.mark.parametrize("reference", ["", "9^{9^{9^9}}", "1/0", "1" * 5000])
def test_a_reference_without_a_value_is_an_error(reference):
    with pytest.raises(BadReferenceError):
        check("3", reference)


def test_only_the_final_answer_counts():
    def correct(completion: str) -> bool:
        return MATH.check(Item(completion, "42"), MathParameters()).correct

    assert not correct(r"<think>\boxed{42}</think> I do not know.")
    assert not correct("so many words about 42")
    assert not correct(r"\boxed{41} The final answer is 42")
    assert correct(r"\boxed{41}, no: \boxed{42}")


@given(st.integers(-999, 999), st.integers(1, 99), st.integers(-999, 999), st.integers(1, 99))
@settings(max_examples=60, deadline=None)
def test_fractions_are_equal_exactly_when_their_values_are(a, b, c, d):
    assert check(rf"\frac{{{a}}}{{{b}}}", f"{c}/{d}").correct == (a * d == b * c)


@given(st.integers(-9, 9), st.integers(-9, 9))
@settings(max_examples=15, deadline=None)
def test_an_expanded_product_is_equal_and_a_shifted_product_is_not(a, b):
    reference = f"(x+({a}))(x+({b}))"
    assert check(f"x^2+({a + b})x+({a * b})", reference).correct
    assert not check(f"x^2+({a + b})x+({a * b + 1})", reference).correct


COMMANDS = (r"\frac", r"\sqrt", r"\pi", r"\text", r"\le", r"\int", r"\begin{matrix}", r"\infty")
FRAGMENTS = st.sampled_from([*"0123456789xyi+-*/^_=<>(){}[],.!|%$ \\\n\u200b²½e", *COMMANDS])


@given(st.one_of(st.text(max_size=40), st.lists(FRAGMENTS, max_size=14).map("".join)))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_a_verifier_fail(text):
    timer = worker.Timer(1.0)
    for name, reference in (("math", "x+1"), ("numeric", "7"), ("choice", "B"), ("exact", "a"), ("format", "")):
        item = verifier_pb2.VerifyItem(
            verifier=name, completion=rf"\boxed{{{worker._without_surrogates(text)}}}", reference=reference
        )
        result, _ = worker.verify_within_limits(item, VERIFIERS, timer, Tripwire())
        assert result.error.code in (0, 6), result.error.message  # a verdict, or out of time; never a crash
