"""The short form of tests/fuzz/verifier_parsers.py: nothing crashes, hangs or pays for another number."""

import importlib.util
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from vold_verifier.reading import extraction
from vold_verifier.reading.text import mathematical, plain

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
def test_no_text_breaks_a_verifier(fuzz, completion, reference):
    for verifier in (fuzz.math, *fuzz.cheap):
        fuzz.check(verifier, completion, reference)
        fuzz.check(verifier, rf"\boxed{{{completion}}}", "7")
    fuzz.check(fuzz.cheap[1], completion, "B", fuzz.options)
    assert fuzz.found == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(st.integers(0, 2**32))
def test_another_number_is_never_paid_for(fuzz, seed):
    reference, answer = parsers.differing(random.Random(seed))
    for verifier in (fuzz.math, fuzz.cheap[0]):
        assert not fuzz.check(verifier, rf"\boxed{{{answer}}}", reference), (answer, reference)
    assert fuzz.found == []


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_same_number_is_paid_for_however_it_is_written(fuzz, value, way):
    number = parsers.number(random.Random(value))
    rng = random.Random(way)
    reference, answer = parsers.written(number, rng), parsers.written(number, rng)
    if not reference.startswith("x ="):
        assert fuzz.check(fuzz.math, rf"\boxed{{{answer}}}", reference), (answer, reference)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_boxes_are_parts_of_the_text_with_balanced_braces(text):
    contents, _ = extraction.boxes(text)
    for content in contents:
        assert f"{{{content}}}" in text
        assert content.replace("\\{", "").replace("\\}", "").replace("\\\\", "").count("{") >= 0
    assert extraction.find(text, extraction.Extraction()).reason


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_one_spelling_is_reached_in_one_step(text):
    assert plain(plain(text)) == plain(text)
    assert "\u200b" not in mathematical(text)
