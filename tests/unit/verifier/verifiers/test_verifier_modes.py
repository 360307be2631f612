"""Tolerances and order in every verifier that compares values, labelled boxes, and equations in place of numbers."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vold_verifier import registry
from vold_verifier.verifiers.base import Item

VERIFIERS = registry.load()
NUMBERS = st.integers(2, 999)
CLOSED_FORMS = st.sampled_from(
    [(r"\sqrt{%d}", lambda n: n**0.5), (r"%d\pi", lambda n: 3.141592653589793 * n), (r"%d/7", lambda n: n / 7)]
)


def is_paid(name: str, completion: str, reference: str, prompt: str = "", **parameters: object) -> bool:
    verifier = VERIFIERS[name]
    return verifier.check(Item(completion, reference, prompt), verifier.parameters(**parameters)).correct


@settings(max_examples=20, deadline=None)
@given(CLOSED_FORMS, NUMBERS, st.sampled_from([0.01, 0.001]), st.sampled_from(["math", "numeric", "list"]))
def test_a_closed_form_is_compared_within_the_tolerance(form, number, tolerance, name):
    text, value = form
    answer, parameters = text % number, {"items": "math"} if name == "list" else {}
    assume(name == "math" or form[0] != r"\sqrt{%d}" or math.isqrt(number) ** 2 != number)  # left to compute
    near, far = value(number) * (1 + 0.9 * tolerance), value(number) * (1 + 1.2 * tolerance)
    for reference, paid in ((near, True), (far, False)):
        completion = rf"\boxed{{{answer}}}"
        assert is_paid(name, completion, f"{reference:.9f}", relative_tolerance=tolerance, **parameters) is paid
        assert not is_paid(name, completion, f"{reference:.9f}", **parameters)


@settings(max_examples=20, deadline=None)
@given(st.permutations([2.5, 7.0, 11.0, 40.0]), st.sampled_from(["math", "list"]), st.booleans())
def test_tolerance_and_order_reach_lists(values, name, ordered):
    parameters = {"items": "number"} if name == "list" else {}
    near = ", ".join(f"{value * 1.004:.6f}" for value in values)
    reference = "2.5, 7, 11, 40"
    paid = is_paid(name, rf"\boxed{{{near}}}", reference, relative_tolerance=0.005, ordered=ordered, **parameters)
    assert paid is (not ordered or list(values) == sorted(values))
    assert not is_paid(name, rf"\boxed{{{near}}}", reference, relative_tolerance=0.003, **parameters)
    assert not is_paid(name, rf"\boxed{{{near}, 1}}", reference, relative_tolerance=0.005, **parameters)


@pytest.mark.parametrize(
    ("answer", "reference", "parameters", "paid"),
    [
        ("2, 1", "1, 2", {}, True),
        ("2, 1", "1, 2", {"ordered": True}, False),
        (r"\frac12, x+1", "0.5, 1+x", {"ordered": True}, True),
        (r"\{2, 1\}", r"\{1, 2\}", {"ordered": True}, False),
        ("1,000", "1000", {"ordered": True}, True),
        ("(1.001, 2)", "(1, 2)", {"relative_tolerance": 0.01}, True),
        ("(2, 1.001)", "(1, 2)", {"relative_tolerance": 0.01}, False),
        ("3.15", "3.14", {"absolute_tolerance": 0.02}, True),
        (r"5.01\text{ cm}", r"50\text{ mm}", {"relative_tolerance": 0.01}, True),
        (r"5.01\text{ m}", r"5\text{ cm}", {"relative_tolerance": 0.01}, False),
        ("x + 0.001", "x", {"absolute_tolerance": 1}, False),
        (r"3 \pm 0.1", "3", {"absolute_tolerance": 0.5}, False),
    ],
)
def test_modes_of_math(answer, reference, parameters, paid):
    assert is_paid("math", rf"\boxed{{{answer}}}", reference, **parameters) is paid


def test_a_tolerance_of_json_may_be_absolute():
    assert is_paid("json", '{"a": 0.01}', '{"a": 0}', absolute_tolerance=0.02)
    assert not is_paid("json", '{"a": 0.03}', '{"a": 0}', absolute_tolerance=0.02)


def test_a_closed_form_copied_from_the_prompt_is_refused():
    assert is_paid("numeric", r"\boxed{10\sqrt{2}}", "14.1421356", "How long is the diagonal?")
    assert not is_paid("numeric", r"\boxed{10\sqrt{2}}", "14.1421356", r"What is $10\sqrt{2}$?")


TERMS = st.lists(st.integers(0, 9), min_size=2, max_size=6)


@given(
    TERMS, st.lists(st.sampled_from("+-*"), min_size=5, max_size=5), st.sampled_from(["%s", r"\boxed{%s}", "%s+0\\pi"])
)
def test_a_problem_that_is_written_down_and_not_computed_is_refused(terms, operators, place):
    """As a student writes it that reads the problem off a picture: the prompt does not hold it."""
    problem = str(terms[0]) + "".join(f"{o}{term}" for o, term in zip(operators, terms[1:], strict=False))
    completion = place % problem
    assert not is_paid("numeric", completion, str(eval(problem)), "[image]")
    assert not is_paid("numeric", completion, str(eval(problem)), "[image]", relative_tolerance=0.01)


@given(st.lists(st.decimals(-99, 99, places=4), min_size=2, max_size=4))
def test_decimals_that_are_left_to_add_are_no_number(terms):
    assume(all(term for term in terms))
    problem = "+".join(f"({term})" for term in terms)
    assert not is_paid("numeric", rf"\boxed{{{problem}}}", str(sum(terms)), "[image]")


@pytest.mark.parametrize("answer", [r"3 \cdot 4", "2^3+4", r"\sqrt{144}", "4!/2", r"\frac{24}{\sqrt{4}}"])
def test_what_is_left_to_compute_is_no_number(answer):
    assert not is_paid("numeric", rf"\boxed{{{answer}}}", "12")


NAMES = st.sampled_from(
    [
        "x",
        "AB",
        r"\angle A",
        r"\Delta x",
        "f(2)",
        "x_1",
        r"\text{Area}",
        r"\log_2 8x",
        "a+b+c",
        r"\frac{a}{b}",
        r"\theta",
    ]
)
SIDES = st.sampled_from(
    ["2x", "x+41", "41 + x", r"\sqrt{x}", "x^2", r"\frac{x}{3}", "x-1", "3(x+1)", r"2\theta", r"5 \cdot n", "n!"]
)


@settings(max_examples=20, deadline=None)
@given(NAMES, NUMBERS, NUMBERS)
def test_a_value_with_its_name_is_the_value(name, number, other):
    assume(number != other)
    for answer in (f"{name} = {number}", f"{number} = {name}") if name == "x" else (f"{name} = {number}",):
        assert is_paid("math", rf"\boxed{{{answer}}}", str(number))
        assert not is_paid("math", rf"\boxed{{{answer}}}", str(other))


@settings(max_examples=20, deadline=None)
@given(SIDES, NUMBERS, st.sampled_from(["math", "numeric"]))
def test_an_equation_that_is_left_to_solve_is_no_number(side, number, name):
    answer = rf"\boxed{{{side} = {number}}}"
    assert not is_paid(name, answer, str(number))
    assert not is_paid(name, answer, str(number), "Find x and the rest.")
    assert is_paid(name, answer, str(number), f"Find the value of ${side}$.")


@settings(max_examples=20, deadline=None)
@given(st.permutations(["x", "y", "z"]), st.lists(NUMBERS, min_size=2, max_size=2, unique=True))
def test_boxes_keep_their_names(names, values):
    first, second = names[:2]
    completion = rf"So ${first} = \boxed{{{values[0]}}}$ and ${second} = \boxed{{{values[1]}}}$"
    right, swapped = (dict(zip((first, second), order, strict=True)) for order in (values, values[::-1]))
    for values_by_name, paid in ((right, True), (swapped, False)):
        named = [f"{name} = {values_by_name[name]}" for name in sorted(values_by_name)]
        point = ", ".join(str(values_by_name[name]) for name in sorted(values_by_name))
        assert is_paid("math", completion, ", ".join(named)) is paid
        assert is_paid("math", completion, f"({point})") is paid
    assert is_paid("math", completion, f"{values[1]}, {values[0]}")  # a set of two values


PARTS = st.sampled_from(
    [
        ("(a)", "(b)", "(c)"),
        ("(i)", "(ii)", "(iii)"),
        ("**(a)**", "**(b)**", "**(c)**"),
        ("Part (a)", "Part (b)", "Part (c)"),
        ("1.", "2.", "3."),
    ]
)


@settings(max_examples=20, deadline=None)
@given(
    PARTS,
    st.lists(NUMBERS, min_size=2, max_size=3, unique=True),
    st.sampled_from([" ", " The length is ", ": $", " so we get $"]),
)
def test_the_parts_of_a_question_are_compared_in_order(parts, values, words):
    end = "$" if "$" in words else ""
    completion = "\n".join(rf"{part}{words}\boxed{{{value}}}{end}" for part, value in zip(parts, values, strict=False))
    assert is_paid("math", completion, ", ".join(map(str, values)))
    assert not is_paid("math", completion, ", ".join(map(str, reversed(values))))
    assert not is_paid("math", completion, ", ".join(map(str, [*values[:-1], 1000])))
    assert is_paid("math", completion, str(values[-1]))  # the last box counts for a question with one answer
    assert not is_paid("math", completion, str(values[0]))
