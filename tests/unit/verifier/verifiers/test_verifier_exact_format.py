"""The verifiers `exact` and `format`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.exact import ExactParameters, ExactVerifier
from vold_verifier.verifiers.format import FormatParameters, FormatVerifier

EXACT = ExactVerifier()
FORMAT = FormatVerifier()
LOOSE = {"ignore_case": True, "ignore_punctuation": True, "ignore_articles": True}


@pytest.mark.parametrize(
    ("completion", "reference", "parameters", "correct"),
    [
        ("Paris", "Paris", {}, True),
        ("paris", "Paris", {}, False),
        ("paris", "Paris", {"ignore_case": True}, True),
        ("  hello\t world\n", "hello world", {}, True),
        ("hello  world", "hello world", {"ignore_space": False}, False),
        ("<think>x</think>Paris", "Paris", {}, True),
        ("<think>Paris</think>Rome", "Paris", {}, False),
        ("<think>Paris", "Paris", {}, False),
        ("<answer>Paris</answer>", "Paris", {}, True),
        (r"\boxed{Paris}", "Paris", {}, True),
        ("The elephant!", "elephant", LOOSE, True),
        ("Hello, world!", "hello world", LOOSE, True),
        ("42", "43", LOOSE, False),
        ("Pa\u200bris", "Paris", {}, True),
        ("Pa\u200bris", "Paris", {"unicode": False}, False),
        ("", "Paris", {}, False),
    ],
)
def test_exact(completion, reference, parameters, correct):
    assert EXACT.check(Item(completion, reference), ExactParameters(**parameters)).correct is correct


def test_an_empty_reference_cannot_be_matched():
    with pytest.raises(BadReferenceError, match="empty"):
        EXACT.check(Item("", "..."), ExactParameters(ignore_punctuation=True))


@given(st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text and "\\" not in text))
def test_a_text_equals_itself(text):
    parameters = ExactParameters(accept=("final_part",), unicode=False, ignore_space=False)
    verdict = EXACT.check(Item(text.strip(), text.strip()), parameters)
    assert verdict.correct


@pytest.mark.parametrize(
    ("completion", "parameters", "violation"),
    [
        ("<think>a</think><answer>b</answer>", {}, None),
        ("<think>a</think>\n<answer>b</answer>\n", {}, None),
        ("<think>a</think><answer>b", {}, "</answer> occurs 0 times"),
        ("<answer>b</answer>", {}, "<think> occurs 0 times"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", {}, "<answer> occurs 2 times"),
        ("<answer>b</answer><think>a</think>", {}, "stands before"),
        ("<think> </think><answer>b</answer>", {}, "nothing inside <think>"),
        ("<think>a</think><answer></answer>", {}, "nothing inside <answer>"),
        ("<think>a</think> so <answer>b</answer>", {}, "text outside"),
        ("<think>a</think> so <answer>b</answer>", {"allow_between": True}, None),
        ("a</think><answer>b</answer>", {"opened_by_prompt": True}, None),
        ("<think>a</think><answer>b</answer>", {"opened_by_prompt": True}, "<think> occurs 1 times"),
        (r"<think>a</think> \boxed{4}", {"tags": ("think",), "require_box": True}, None),
        (r"<think>\boxed{4}</think>", {"tags": ("think",), "require_box": True}, "0 closed"),
        (r"<think>a</think> \boxed{4} \boxed{5}", {"tags": ("think",), "require_box": True}, "2 closed"),
        (r"\boxed{4}", {"tags": (), "require_box": True}, None),
        ("", {}, "occurs 0 times"),
    ],
)
def test_format(completion, parameters, violation):
    verdict = FORMAT.check(Item(completion, ""), FormatParameters(**parameters))
    assert verdict.correct is (violation is None), verdict.reason
    if violation:
        assert violation in verdict.reason


@pytest.mark.parametrize("parameters", [{"tags": ("<think>",)}, {"tags": ("a", "a")}, {"tags": ()}])
def test_meaningless_format_parameters_are_refused(parameters):
    with pytest.raises(ValidationError):
        FormatParameters(**parameters)


@given(st.text(alphabet="<>/thinkanswer \n", max_size=80))
def test_format_accepts_any_text(text):
    FORMAT.check(Item(text, ""), FormatParameters())
