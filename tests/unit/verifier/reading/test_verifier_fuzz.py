"""The short form of tests/fuzz/verifier_parsers.py: no crash, no hang, no reward for another number."""

import importlib.util
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from vold_verifier.reading import boxes, extraction
from vold_verifier.reading.text import normalise, symbols_to_latex

PATH = ROOT / "tests" / "fuzz" / "verifier_parsers.py"
spec = importlib.util.spec_from_file_location("verifier_parsers", PATH)
parsers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parsers)

TEXT = st.lists(st.one_of(st.sampled_from(parsers.PIECES), st.text(max_size=8)), max_size=25).map("".join)


@pytest.fixture(scope="module")
def fuzz():
    return parsers.Fuzz()


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT)
def test_no_text_makes_a_verifier_fail(fuzz, completion, reference):
    for verifier in (fuzz.math, *fuzz.cheap):
        fuzz.check(verifier, completion, reference)
        fuzz.check(verifier, rf"\boxed{{{completion}}}", "7")
    fuzz.check(fuzz.cheap[1], completion, "B", fuzz.options)
    assert fuzz.findings == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(st.integers(0, 2**32))
def test_another_number_gets_no_reward(fuzz, seed):
    reference, answer = parsers.different_pair(random.Random(seed))
    for verifier in (fuzz.math, fuzz.cheap[0]):
        assert not fuzz.check(verifier, rf"\boxed{{{answer}}}", reference), (answer, reference)
    assert fuzz.findings == []


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_same_number_gets_a_reward_in_every_spelling(fuzz, number_seed, spelling_seed):
    value = parsers.random_number(random.Random(number_seed))
    rng = random.Random(spelling_seed)
    reference, answer = parsers.spelling(value, rng), parsers.spelling(value, rng)
    if not reference.startswith("x ="):
        assert fuzz.check(fuzz.math, rf"\boxed{{{answer}}}", reference), (answer, reference)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_boxes_are_parts_of_the_text_with_balanced_braces(text):
    contents, _ = boxes.boxed_contents(text)
    for content in contents:
        assert f"{{{content}}}" in text
        assert content.replace("\\{", "").replace("\\}", "").replace("\\\\", "").count("{") >= 0
    assert extraction.find(text, extraction.Extraction()).reason


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_normalisation_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)
    assert "\u200b" not in symbols_to_latex(text)
