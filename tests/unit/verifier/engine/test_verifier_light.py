"""Light items: only plain numbers, verified by the verifiers' own code, without algebra; and the cache of verdicts."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_proto.v1 import verifier_pb2
from vold_verifier.engine import light
from vold_verifier.engine.cache import ResultCache, item_key
from vold_verifier.mathematics import notation, symbolic
from vold_verifier.reading.text import symbols_to_latex
from vold_verifier.verifiers.choice import ChoiceVerifier
from vold_verifier.verifiers.math import MathVerifier
from vold_verifier.verifiers.numeric import NumericVerifier

MATH, NUMERIC, CHOICE = MathVerifier(), NumericVerifier(), ChoiceVerifier()


def item(completion: str, reference: str = "18", verifier: str = "math", **parameters: object):
    message = verifier_pb2.VerifyItem(verifier=verifier, completion=completion, reference=reference)
    message.parameters.update(parameters)
    return message


LIGHT = [
    item(r"2 * 9 = 18, so \boxed{18}"),
    item(r"<think>9 + 9</think>\boxed{ 1,018.50 }", "a\n#### 1,018.5"),
    item(r"\boxed{-3}", "+3"),
    item("18"),
]


@pytest.mark.parametrize("light_item", LIGHT, ids=range(len(LIGHT)))
def test_plain_numbers_are_light(light_item):
    assert light.is_light(MATH, light_item)
    assert light.is_light(NUMERIC, light_item)
    assert light.verify(MATH, light_item).correct == (light_item.reference != "+3")


HEAVY = {
    "algebra": item(r"\boxed{x+1}"),
    "algebra in the reference": item(r"\boxed{18}", "x"),
    "two boxes": item(r"\boxed{17} \boxed{18}"),
    "another box": item(r"\fbox{x} \boxed{18}"),
    "a box in the reference": item(r"\boxed{18}", r"\boxed{18}"),
    "thinking after it": item(r"\boxed{18} <think>no"),
    "thinking around it": item(r"<think>\boxed{18}</think>19"),
    "other places first": item(r"\boxed{18}", accept=["answer_line", "boxed"]),
    "no box": item("The answer is 18"),
    "a power": item(r"\boxed{9^9}"),
    "an exponent": item(r"\boxed{1e9999}"),
    "many digits": item(r"\boxed{" + "1" * 400 + "}"),
    "many digits in the reference": item(r"\boxed{18}", "1" * 400),
    "a long completion": item("x" * 40_000 + r"\boxed{18}"),
    "a long reference": item(r"\boxed{18}", "x" * 5_000 + "#### 18"),
    "a NUL": item("\\boxed{18\x00}"),
    "digits that are not ASCII": item("\\boxed{1٨}"),
    "nested": item(r"\boxed{{18}}"),
    "never closed": item(r"\boxed{18"),
}


@pytest.mark.parametrize("name", HEAVY)
def test_other_items_go_to_a_worker(name):
    assert not light.is_light(MATH, HEAVY[name])


def test_other_verifiers_are_not_light():
    assert not light.is_light(CHOICE, item("18", verifier="choice"))


NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(1000, 10**12).map("{:,}".format),
    st.decimals(-1000, 1000, places=4).map("{:f}".format),
    st.decimals(0, 10, places=2).map("{:f}".format),
)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, st.booleans())
def test_the_verdict_is_what_algebra_says(reference, other, same):
    answer = reference if same else other
    light_item = item(rf"We find \boxed{{{answer}}}.", reference)
    assert light.is_light(MATH, light_item)
    reference_text, answer_text = (notation.clean(symbols_to_latex(text)) for text in (reference, answer))
    assert light.verify(MATH, light_item).correct == (
        float(reference_text.replace(",", "")) == float(answer_text.replace(",", ""))
    )
    assert light.verify(MATH, light_item).correct == symbolic.compare(reference_text, answer_text)[0]


def test_no_algebra_is_loaded_for_them():
    script = """
import sys
from vold_proto.v1 import verifier_pb2
from vold_verifier.engine import engine
from vold_verifier.engine import light
from vold_verifier.verifiers.math import MathVerifier
item = verifier_pb2.VerifyItem(verifier="math", completion="so \\\\boxed{18}", reference="18")
assert light.is_light(MathVerifier(), item) and light.verify(MathVerifier(), item).reward == 1
assert not {"sympy", "math_verify", "antlr4"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def result(reason: str, **values: object) -> verifier_pb2.VerifyResult:
    return verifier_pb2.VerifyResult(id="a", reward=1.0, correct=True, reason=reason, seconds=2.0, **values)


def test_the_cache_key_is_the_item_without_its_id():
    cache = ResultCache(10_000, "1")
    light_item = item("18")
    cache.put(MATH, item_key(light_item), "maths", result("because"))
    repeated = item("18")
    repeated.id = "other"
    cached = cache.get(MATH, item_key(repeated), "maths")
    assert (cached.reason, cached.id, cached.seconds, cached.cached) == ("because", "", 0.0, True)
    assert repeated.id == "other"
    for different in (item("18 "), item("18", "19"), item("18", accept=["boxed"])):
        assert cache.get(MATH, item_key(different), "maths") is None
    assert cache.get(MATH, item_key(repeated), "guests") is None


def test_the_cache_is_bounded_and_holds_no_errors():
    cache = ResultCache(3_000, "1")
    keys = [item_key(item(str(n))) for n in range(100)]
    for key in keys:
        cache.put(MATH, key, "maths", result("x" * 500))
    assert 1 <= sum(cache.get(MATH, key, "maths") is not None for key in keys) <= 4
    assert cache.get(MATH, keys[-1], "maths") is not None
    failed = verifier_pb2.VerifyResult(error={"message": "no"})
    cache.put(MATH, b"failed", "maths", failed)
    assert cache.get(MATH, b"failed", "maths") is None
    cache.put(MATH, b"large", "maths", result("x" * 5_000))
    assert cache.get(MATH, b"large", "maths") is None


def test_no_verdict_is_cached_without_memory_or_of_a_random_verifier():
    off = ResultCache(0, "1")
    off.put(MATH, b"k", "maths", result("x"))
    assert off.get(MATH, b"k", "maths") is None

    class RandomVerifier(MathVerifier):
        deterministic = False

    cache = ResultCache(10_000, "1")
    cache.put(RandomVerifier(), b"k", "maths", result("x"))
    assert cache.get(RandomVerifier(), b"k", "maths") is None


def test_a_cached_verdict_is_for_one_version_of_the_verifier():
    class NewerVerifier(MathVerifier):
        version = "2"

    cache = ResultCache(10_000, "1")
    cache.put(MATH, b"k", "maths", result("x"))
    assert cache.get(NewerVerifier(), b"k", "maths") is None
    assert cache.get(MATH, b"k", "maths") is not None
