"""Extraction of the answer: after the thinking, from the last balanced box, never by accident."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_verifier.reading.boxes import boxed_contents
from vold_verifier.reading.extraction import Extraction, final_part, find, reference_text
from vold_verifier.reading.text import normalise, symbols_to_latex


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{4}, but actually \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \text{a } b}", r"\text{a } b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{-3}", "-3"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"thought</think>\boxed{2}", "2"),
        ("<think>\\boxed{1}</think> I am\ndone", None),
        (r"<think>\boxed{1}", None),
        (r"<think>a</think><think>\boxed{1}", None),
        (r"\boxed{4", None),
        (r"\boxed{}", None),
        (r"\boxed{41} The final answer is 42", "41"),
        ("<answer>3</answer>", "3"),
        ("<answer>3</answer> <answer>4</answer>", "4"),
        ("Well.\n**Final Answer:** 12", "12"),
        ("Answer: 41\nAnswer: 42", "42"),
        ("The answer is: 42", "42"),
        ("42", "42"),
        ("we get 17, then 25\nand 42", None),
        ("", None),
    ],
)
def test_the_answer_is_extracted_by_the_rules(completion, answer):
    extracted = find(completion, Extraction())
    assert extracted.answer == answer
    assert extracted.reason


def test_a_bare_trailing_number_counts_only_where_it_is_allowed():
    text = "3 and 4 make\n7 apples"
    assert find(text, Extraction()).answer is None
    assert find(text, Extraction(accept=("boxed", "last_number"))).answer == "7"


def test_a_prompt_that_opens_the_thinking_leaves_no_answer_until_it_closes():
    assert find(r"\boxed{3}", Extraction(), prompt="Think.\n<think>\n").answer is None
    assert find(r"x</think>\boxed{3}", Extraction(), prompt="Think.\n<think>\n").answer == "3"


def test_the_think_tag_can_be_named():
    text = r"<reasoning>\boxed{1}</reasoning>\boxed{2}"
    assert final_part(text, "reasoning") == r"\boxed{2}"
    assert find(r"<reasoning>\boxed{1}", Extraction(think_tag="reasoning")).answer is None


@pytest.mark.parametrize(
    ("reference", "text"),
    [("3 + 4 = 7\n#### 7", "7"), (r"\boxed{\frac12}", r"\frac12"), ("The answer is 5", "5"), (" x ", "x")],
)
def test_references_are_parsed_in_the_formats_of_data_sets(reference, text):
    assert reference_text(reference) == text


@given(st.text(alphabet="\\boxed{} 1a", max_size=60))
def test_boxes_never_fail_and_return_balanced_contents(text):
    for content in boxed_contents(text)[0]:
        assert content in text


@given(st.text(alphabet="\\{} 1", max_size=60))
def test_a_box_ends_where_its_own_brace_is_closed(text):
    depth, escaped, end = 1, False, None
    for position, character in enumerate(text):
        depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
        escaped = character == "\\" and not escaped
        if not depth:
            end = position
            break
    assert boxed_contents("\\boxed{" + text) == (([], True) if end is None else ([text[:end]], False))


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "<think>", "\n", "Answer: *", "answer  ", "{", "-", "√(", "\u200b", "**", "*", " ", "\t", ">", "_ "],
)
@pytest.mark.timeout(30)  # a quadratic rule takes minutes
def test_long_adversarial_text_is_read_in_linear_time(unit):
    text = unit * (200_000 // len(unit))
    find(text, Extraction(accept=("boxed", "answer_tag", "answer_line", "whole", "last_number")))
    normalise(text)
    symbols_to_latex(text[:1000])


@pytest.mark.parametrize(
    ("text", "latex"),
    [("x²", "x^{2}"), ("2½", r"2\frac{1}{2}"), ("a₁", "a_{1}"), ("√12", r"\sqrt{12}"), ("１２", "12"), ("−1", "-1")],
)
def test_mathematical_characters_keep_their_meaning(text, latex):
    assert symbols_to_latex(text) == latex


def test_invisible_characters_are_removed():
    assert normalise("4\u200b2\u202e") == "42"
