"""The verifiers of sets, lists, patterns, truth values and JSON, and the two penalties."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vold_verifier import registry
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import BadParameterError, Item, Verdict

VERIFIERS = registry.load()


def verify(name: str, completion: str, reference: str = "", **parameters: object) -> Verdict:
    verifier = VERIFIERS[name]
    return verifier.check(Item(completion, reference), verifier.parameters(**parameters))


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        *[
            (answer, 1)
            for answer in ("A, C", "C and A", "(A), (C)", "AC", "a, c", "A. Paris; C. Oslo", "Paris and Oslo")
        ],
        *[(answer, 0.5) for answer in ("A", "(C)", "Paris")],
        *[(answer, 0) for answer in ("A, B", "A, B, C, D", "A or C", "none", "Madrid", "B")],
    ],
)
def test_multi_choice(answer, reward):
    options = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}
    verdict = verify("multi-choice", rf"\boxed{{{answer}}}", "A, C", options=options, partial=True)
    assert verdict.reward == reward
    assert verdict.correct is (reward == 1)


def test_multi_choice_may_have_no_right_option():
    assert verify("multi-choice", r"\boxed{none}", "none", letters="ABC").correct
    with pytest.raises(BadReferenceError, match="A or B"):
        verify("multi-choice", "A", "A or B")


@pytest.mark.parametrize(
    ("answer", "reference", "parameters", "correct"),
    [
        ("b, a", "a, b", {}, True),
        ("b, a", "a, b", {"ordered": True}, False),
        ("a, b", "a, b", {"ordered": True}, True),
        ("A, B", "a, b", {"ignore_case": False}, False),
        ("a, a, b", "a, b", {}, False),
        ("a, a, b", "a, b", {"duplicates": False}, True),
        ("1/2, 0.25", "0.5, 1/4", {"items": "number"}, True),
        ("1/2, 0.26", "0.5, 1/4", {"items": "number"}, False),
        (r"(x+1)^2; \sqrt{12}", r"2\sqrt{3}; x^2+2x+1", {"items": "math"}, True),
        ("[1, 2]", "1, 2", {"items": "number"}, True),
        ('["x", "y"]', "y, x", {}, True),
        ("- x\n- y", "x, y", {}, True),
        ("1. x\n2. y", "x, y", {}, True),
        ("x|y", "x|y", {"separator": "|"}, True),
        ("a", "a, b", {}, False),
        ("(1, 2), (3, 4)", "(3, 4), (1, 2)", {}, True),
    ],
)
def test_list(answer, reference, parameters, correct):
    assert verify("list", f"<answer>{answer}</answer>", reference, **parameters).correct is correct


def test_partial_lists_get_a_share_of_the_reward():
    assert verify("list", "<answer>a</answer>", "a, b", partial=True).reward == pytest.approx(2 / 3)
    assert verify("list", "<answer>a, x</answer>", "a, b", partial=True, ordered=True).reward == 0.5


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=8), st.randoms())
def test_a_list_equals_itself_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    text = "<answer>" + ", ".join(map(str, shuffled)) + "</answer>"
    assert verify("list", text, ", ".join(map(str, values)), items="number").correct
    extra = text.replace("<answer>", "<answer>100, ")
    assert not verify("list", extra, ", ".join(map(str, values)), items="number").correct


@pytest.mark.parametrize(
    ("completion", "reference", "correct"),
    [
        ("Yes", "yes", True),
        (r"\boxed{\text{True}}", "yes", True),
        ("No, it is not.", "false", True),
        ("Yes.", "no", False),
        ("yes or no", "yes", False),
        ("Yes, wait, no", "yes", False),
        ("not true", "true", False),
        ("maybe", "no", False),
        ("<think>no</think>The answer is yes.", "yes", True),
        ("<think>yes", "yes", False),
    ],
)
def test_boolean(completion, reference, correct):
    assert verify("boolean", completion, reference).correct is correct


def test_boolean_in_other_words():
    words = {"true_words": ["oui"], "false_words": ["non"]}
    assert verify("boolean", "Oui.", "oui", **words).correct
    with pytest.raises(BadReferenceError, match="oui, non"):
        verify("boolean", "oui", "yes", **words)
    with pytest.raises(ValidationError, match="listed twice"):
        VERIFIERS["boolean"].parameters(true_words=["ja"], false_words=["Ja"])


@pytest.mark.parametrize(
    ("completion", "reference", "parameters", "correct"),
    [
        ("abc", "a.c", {}, True),
        ("xabc", "a.c", {}, False),
        ("It is 17:45 now", "17:45", {"pattern": r"(\d\d:\d\d)"}, True),
        ("It is 17:46 now", "17:45", {"pattern": r"(\d\d:\d\d)"}, False),
        ("ABC", "abc", {"ignore_case": True}, True),
        ("a\nb", "a.b", {"dot_matches_newline": True}, True),
        ("<think>abc</think>x", "abc", {}, False),
    ],
)
def test_regex(completion, reference, parameters, correct):
    assert verify("regex", completion, reference, **parameters).correct is correct


def test_an_invalid_pattern_is_an_error():
    with pytest.raises(BadReferenceError, match="no regular expression"):
        verify("regex", "x", "(")
    with pytest.raises(ValidationError, match="no regular expression"):
        VERIFIERS["regex"].parameters(pattern="(")


PERSON = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
}


@pytest.mark.parametrize(
    ("value", "parameters", "reward"),
    [
        ('{"name": "Ada", "age": 36}', {}, 1),
        ('{"age": 36, "name": "Ada"}', {}, 1),
        ('{"name": "Ada"}', {}, 0),
        ('{"name": "ada", "age": 36}', {"ignore_case": True}, 1),
        ('{"name": "Ada", "age": 36.5}', {"relative_tolerance": 0.02}, 1),
        ('{"name": "Ada", "age": 30}', {"weights": {"name": 3, "age": 1}}, 0.75),
        ('{"name": "Ada", "age": "x"}', {"weights": {"name": 1}, "schema": PERSON}, 0),
        ('{"name": "Ada", "age": 36, "x": 1}', {"weights": {"name": 1}, "schema": PERSON}, 1),
        ("not json", {}, 0),
        ("", {}, 0),
    ],
)
@pytest.mark.parametrize("around", ["{}", "<answer>{}</answer>", "Here:\n```json\n{}\n```\n"])
def test_json(value, parameters, reward, around):
    verdict = verify("json", around.replace("{}", value), '{"name": "Ada", "age": 36}', **parameters)
    assert verdict.reward == pytest.approx(reward)
    assert verdict.correct is (reward == 1)


def test_json_paths_schemas_and_references():
    nested = '{"a": {"b": [1, 2]}}'
    assert verify("json", '{"a": {"b": [9, 2]}}', nested, weights={"a.b.1": 1}).correct
    assert verify("json", '{"name": "x"}', "", schema=PERSON).correct
    with pytest.raises(BadParameterError, match=r"no field 'a\.c'"):
        verify("json", "{}", nested, weights={"a.c": 1})
    with pytest.raises(BadParameterError, match="leads out"):
        verify("json", "{}", "{}", schema={"$ref": "http://localhost:9/schema.json"})
    with pytest.raises(BadReferenceError, match="empty"):
        verify("json", "{}", "")
    with pytest.raises(ValidationError, match="no JSON schema"):
        VERIFIERS["json"].parameters(schema={"type": "nonsense"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5).filter(lambda text: "`" not in text),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_json_is_equal_exactly_when_the_values_are(value, reference):
    def canonical(inner):
        return json.dumps(inner, sort_keys=True)

    completion = f"<answer>{json.dumps(value)}</answer>"
    if "</answer>" not in json.dumps(value) and "<answer>" not in json.dumps(value):
        assert verify("json", completion, json.dumps(reference)).correct is (canonical(value) == canonical(reference))


@pytest.mark.parametrize(("length", "reward"), [(0, 0), (900, 0), (950, -0.5), (975, -0.75), (1000, -1), (5000, -1)])
def test_overlong_is_the_equation_of_dapo(length, reward):
    verdict = verify("overlong", "x" * length, max_length=1000, buffer=100)
    assert verdict.reward == pytest.approx(reward)
    assert verify("overlong", "", max_length=1000, buffer=100, length=length).reward == pytest.approx(reward)
    assert verdict.correct is (reward == 0)


def test_overlong_counts_words_and_refuses_a_buffer_beyond_the_limit():
    assert verify("overlong", "one two three", max_length=4, buffer=2, unit="words").reward == -0.5
    with pytest.raises(ValidationError, match="longer than max_length"):
        VERIFIERS["overlong"].parameters(max_length=10, buffer=11)


def test_repetition_grows_with_the_share_of_repeats():
    fresh = " ".join(f"word{i}" for i in range(200))
    half = fresh + " " + fresh
    loop = "again and " * 200
    rewards = [verify("repetition", text, n=3, allowed=0.0).reward for text in (fresh, half, loop)]
    assert rewards[0] == 0
    assert rewards[0] > rewards[1] > rewards[2] >= -1
    assert rewards[1] == pytest.approx(-(1 - 202 / 398), abs=0.02)
    assert verify("repetition", "哈" * 50, n=4, unit="characters").reward < -0.9
    assert verify("repetition", "too short", n=8).reward == 0
    assert verify("repetition", loop, n=3, max_penalty=0.5).reward >= -0.5


@given(st.text(max_size=120))
def test_penalties_stay_in_their_range(text):
    for verifier, parameters in (("overlong", {"max_length": 60, "buffer": 20}), ("repetition", {"n": 2})):
        assert -1 <= verify(verifier, text, **parameters).reward <= 0


@pytest.mark.parametrize(
    ("completion", "parameters", "violation"),
    [
        ("<think>abc</think><answer>x</answer>", {"min_inside_chars": {"think": 4}}, "fewer than 4"),
        ("<think>abcd</think><answer>x</answer>", {"min_inside_chars": {"think": 4}}, None),
        ("<think>abc</think><answer>xyz</answer>", {"max_inside_chars": {"answer": 2}}, "more than 2"),
        ("abc", {"tags": (), "min_chars": 4}, "fewer than 4"),
        ("abcde", {"tags": (), "max_chars": 4}, "more than 4"),
        ("Wir addieren.", {"tags": (), "scripts": ("latin",)}, None),
        ("We add, 然后我们相乘", {"tags": (), "scripts": ("latin",)}, "letters are latin"),
        ("我们相乘 $x$", {"tags": (), "scripts": ("han", "latin")}, None),
        (r"<think>да</think><answer>\frac12</answer>", {"scripts": ("cyrillic",)}, None),
    ],
)
def test_format_bounds(completion, parameters, violation):
    verdict = verify("format", completion, **parameters)
    assert verdict.correct is (violation is None), verdict.reason
    if violation:
        assert violation in verdict.reason


def test_meaningless_format_bounds_are_refused():
    for parameters in ({"min_inside_chars": {"plan": 3}}, {"min_chars": 5, "max_chars": 4}, {"scripts": ("klingon",)}):
        with pytest.raises(ValidationError):
            VERIFIERS["format"].parameters(**parameters)


def test_choice_names_the_rule_that_refuses_an_answer():
    for completion, rule in (("A or B", "several_answers"), (r"\boxed{А}", "look_alike"), ("<think>B", "unclosed_tag")):
        assert verify("choice", completion, "B").rule == rule
