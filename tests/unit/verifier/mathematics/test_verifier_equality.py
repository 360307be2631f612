"""Mathematical equality: the cases of cases/math_equality.jsonl, and cases derived from arithmetic.

A row of the file has a `reference`, the answers that are `equal` to it, and answers that are `different`.
"""

import json
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import CASES, ROOT
from vold_verifier.mathematics import numbers
from vold_verifier.mathematics.equality import compare
from vold_verifier.reading.text import symbols_to_latex
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.math import MathVerifier

PATH = CASES / "math_equality.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
MATH = MathVerifier()
EXACT_PATH = ("equal numbers", "different numbers")
# Spellings that only the exact path understands.
ONLY_EXACT = ("\\%", "%", r"\text{17 meters}", r"\text{3 hours}")


def check(answer: str, reference: str) -> bool:
    return MATH.check(Item(rf"\boxed{{{answer}}}", reference), MATH.parameters()).correct


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["topic"].replace(" ", "-"))
def test_equal_answers_are_correct_and_different_answers_are_wrong(row):
    correct = {answer: check(answer, row["reference"]) for answer in row["equal"] + row["different"]}
    assert [answer for answer in row["equal"] if not correct[answer]] == [], row["reference"]
    assert [answer for answer in row["different"] if correct[answer]] == [], row["reference"]


def documented_kinds() -> list[tuple[str, str, list[str], list[str]]]:
    """(kind, reference, answers that are paid, answers that are not) of each row of the table in docs/verifiers.md."""
    text = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8")
    table = text.split("| Kind | Reference | Paid | Not paid |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.strip().splitlines()[1:]]
    examples = [[re.findall(r"`([^`]+)`", cell) for cell in row[1:]] for row in rows]
    return [(row[0], *reference, paid, refused) for row, (reference, paid, refused) in zip(rows, examples, strict=True)]


@pytest.mark.parametrize(("kind", "reference", "paid", "refused"), documented_kinds())
def test_the_table_of_answers_holds(kind, reference, paid, refused):
    assert paid
    assert refused
    assert [answer for answer in paid if not check(answer, reference)] == [], kind
    assert [answer for answer in refused if check(answer, reference)] == [], kind


def test_the_exact_path_and_the_full_path_agree_on_every_case():
    tried = 0
    for row in ROWS:
        reference = row["reference"]
        for answer in row["equal"] + row["different"]:
            if any(numbers.parse(symbols_to_latex(text), with_unit=True) is None for text in (reference, answer)):
                continue
            comparison = compare(reference, answer)
            if (
                comparison.by_algebra
                or comparison.reason not in EXACT_PATH
                or any(mark in reference + answer for mark in ONLY_EXACT)
            ):
                continue
            assert compare(reference, answer, use_exact_path=False).equal == comparison.equal, (
                f"{reference} <- {answer}"
            )
            tried += 1
    assert tried > 200


def spellings(value: Fraction) -> list[str]:
    top, bottom = value.numerator, value.denominator
    texts = [
        rf"\frac{{{top}}}{{{bottom}}}",
        f"{top}/{bottom}",
        rf"\frac{{{3 * top}}}{{{3 * bottom}}}",
        rf"x = \frac{{{top}}}{{{bottom}}}",
    ]
    if bottom == 1:
        texts += [str(top), f"{top}.0", f"{top:,}", f"{top}e0", rf"{top}\text{{ cm}}", f"({top})"]
        texts.append(f"{top:,}".replace(",", r"\,"))
    if bottom in (2, 4, 5, 8, 10):
        texts += [str(float(value)), rf"{float(value)} \times 10^{{0}}"]
    whole, rest = divmod(abs(top), bottom)
    if rest and whole:
        sign = "-" if top < 0 else ""
        texts += [rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}", f"{sign}{whole} {rest}/{bottom}"]
    return texts


rationals = st.builds(Fraction, st.integers(-3000, 3000), st.sampled_from([1, 1, 1, 2, 3, 4, 5, 7, 8, 10, 12]))


@given(rationals, rationals, st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_the_exact_path_gives_the_verdict_of_the_full_path(value, other, alike, data):
    reference = data.draw(st.sampled_from(spellings(value)))
    answer = data.draw(st.sampled_from(spellings(value if alike else other)))
    comparison = compare(reference, answer)
    assert comparison.equal == (alike or value == other)
    assert compare(reference, answer, use_exact_path=False).equal == comparison.equal


@given(
    rationals,
    rationals,
    st.sampled_from([r"\sqrt{{{}}}", r"{}\pi", "{} + x", r"({}, 1)", r"[0, {}]", r"\{{ {}, 5000 \}}"]),
)
@settings(max_examples=40, deadline=None)
def test_answers_that_differ_by_construction_are_wrong(value, other, shape):
    value, other = abs(value), abs(other)
    first, second = (shape.format(rf"\frac{{{v.numerator}}}{{{v.denominator}}}") for v in (value, other))
    assert compare(first, first).equal
    if value != other:
        assert not compare(first, second).equal


@given(st.integers(-9, 9), st.integers(1, 9), st.sampled_from(["<", ">", r"\le", r"\ge"]))
@settings(max_examples=10, deadline=None)
def test_an_inequality_equals_its_interval(end, scale, sign):
    flipped = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[sign]
    low = rf"(-\infty, {end}{')' if sign == '<' else ']'}"
    high = rf"{'(' if sign == '>' else '['}{end}, \infty)"
    interval, other = (low, high) if sign in ("<", r"\le") else (high, low)
    for spelling in (
        f"x {sign} {end}",
        f"{end} {flipped} x",
        f"{scale}x {sign} {scale * end}",
        f"x - ({end}) {sign} 0",
    ):
        assert compare(interval, spelling).equal
        assert not compare(other, spelling).equal


@pytest.mark.parametrize("reference", ["", "1/0", r"\frac{1}{", "9^{9^{9^9}}"])
def test_a_reference_without_a_value_is_an_error(reference):
    with pytest.raises(BadReferenceError):
        compare(reference, "3")
