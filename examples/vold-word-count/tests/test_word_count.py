import pytest
from vold_verifier.verifiers import BadReferenceError, Item
from vold_word_count import WordCountParameters, WordCountVerifier


def check(completion, reference, **parameters):
    return WordCountVerifier().check(Item(completion, reference), WordCountParameters(**parameters))


def test_the_words_are_counted():
    verdict = check("<think>Three.</think><answer>one two three</answer>", "3")
    assert verdict.correct
    assert verdict.reward == 1.0
    assert verdict.extracted == "one two three"


def test_with_slack_a_near_miss_gets_a_partial_reward():
    assert check("<answer>one two</answer>", "3").reward == 0.0
    assert check("<answer>one two</answer>", "3", slack=1).reward == 0.5


def test_a_repeated_word_gets_no_reward():
    assert check("<answer>word word word</answer>", "3").reward == 0.0


def test_a_reference_that_is_no_number_is_an_error():
    with pytest.raises(BadReferenceError, match="three"):
        check("<answer>one two three</answer>", "three")
