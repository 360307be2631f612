"""The option that a completion chooses, and completions that choose no option."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.choice import ChoiceParameters, ChoiceVerifier

CHOICE = ChoiceVerifier()
OPTIONS = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}


def choose(completion: str, **parameters: object) -> str | None:
    return CHOICE.check(Item(completion, "A"), ChoiceParameters(**{"options": OPTIONS, **parameters})).extracted


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("Ｂ", "B"),
        ("The answer is (B)", "B"),
        ("The answer is B.", "B"),
        ("The answer is Rome.", "B"),
        ("Rome", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{ [B] }", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\text{B) Rome}}", "B"),
        (r"\boxed{\text{Answer: B}}", "B"),
        (r"\boxed{Rome}", "B"),
        (r"\boxed{A}, no: \boxed{B}", "B"),
        ("**Answer: B**", "B"),
        ("Answer: $B$", "B"),
        ("Answer: B because C is not a capital", "B"),
        ("Answer: B, not A", "B"),
        ("Answer: B/B", "B"),
        ("Answer: A\nAnswer: B", "B"),
        ("答案: B", "B"),
        ("B不是 A", "B"),
        ("réponse est B non A", "B"),
        ("B. it can't be A or C", "B"),
        ("A seems plausible but the answer is B", "B"),
        ("It's not A because it makes no sense, therefore I think it's B", "B"),
        ("It is not A. It is B", "B"),
        ("I think **B** is correct", "B"),
        ("Let me see.\n\n**B**", "B"),
        ("<think>A</think>The answer is B", "B"),
    ],
)
def test_a_named_option_is_the_answer(completion, letter):
    assert choose(completion) == letter


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "A or B",
        "Answer: A or B",
        "Answer: A and B",
        "Answer: A, B",
        "Answer: A/B/C/D",
        "A, B, C, D",
        r"\boxed{A, B}",
        r"\boxed{AB}",
        r"\boxed{}",
        r"\boxed{A",
        r"\boxed{А}",  # Cyrillic
        r"\boxed{B. Oslo}",
        r"\boxed{G}",
        "The answer is either A or B",
        "The correct answer is B or C",
        "The answer is not A",
        "B is wrong",
        "A long story about capitals",
        "I think it might be B but I am not sure",
        "<think>The answer is B",
        "<think>The answer is B</think>",
        "No valid answer here",
    ],
)
def test_hedges_articles_and_look_alikes_are_no_answer(completion):
    assert choose(completion) is None


def test_prose_counts_only_where_it_is_accepted():
    assert choose("The answer is B", accept=("boxed",)) is None


def test_the_reference_may_be_a_letter_or_an_option():
    for reference in ("B", "(B) Rome", "Rome", "b"):
        assert CHOICE.check(Item("B", reference), ChoiceParameters(options=OPTIONS)).correct
    with pytest.raises(BadReferenceError, match="Madrid"):
        CHOICE.check(Item("B", "Madrid"), ChoiceParameters(options=OPTIONS))


@pytest.mark.parametrize("parameters", [{"options": {"AB": "x"}}, {"options": {"1": "x"}}, {"letters": "A1"}])
def test_options_are_keyed_by_letters(parameters):
    with pytest.raises(ValidationError, match="letter"):
        ChoiceParameters(**parameters)


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from([" or ", ", ", "/", " and ", " & "]))
def test_two_letters_are_an_answer_only_if_they_are_the_same(first, second, joiner):
    letter = choose(f"The answer is {first}{joiner}{second}")
    assert letter == (first if first == second else None)
