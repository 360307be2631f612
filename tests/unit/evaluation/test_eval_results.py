"""The result of a set from hand-made verdicts: accuracies, categories, samples and missing verdicts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from vold_client import Unavailable, Verdict
from vold_trainer.adapters import Outcome
from vold_trainer.config import EvalConfig, SamplingConfig, load
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.evaluation.answers import GREEDY, Answer
from vold_trainer.evaluation.results import VerifiedExample, summarise
from vold_trainer.evaluation.run import generation_batches
from vold_trainer.evaluation.tables import category_table, result_table

UNVERIFIED = "no verdict"


def pair(extracted, sample=GREEDY):
    """An answer with its verdict; `extracted` is the final answer in it, the correct one is "r"."""
    answer = Answer("set", "q", sample, "...", 4 if extracted == "r" else 6, extracted is None, "p")
    if extracted is UNVERIFIED:
        return answer, Verdict("", error=Unavailable("gone"))
    return answer, Verdict("", reward=float(extracted == "r"), correct=extracted == "r", extracted=extracted)


def problem(greedy, *sampled, category="", **facets):
    example = Example("q", ({"role": "user", "content": "?"},), "r", category=category, meta={"facets": facets})
    greedy_pair = None if greedy == "-" else pair(greedy)
    return VerifiedExample(example, greedy_pair, tuple(pair(extracted, n) for n, extracted in enumerate(sampled)))


def test_an_answer_without_a_verdict_is_counted_as_an_error_and_not_as_0():
    found = summarise([problem("r"), problem("a"), problem(UNVERIFIED), problem(None)], SamplingConfig())
    assert (found.accuracy, found.n, found.errors, found.problems) == (pytest.approx(1 / 3), 3, 1, 4)
    assert found.truncated == 0.25
    assert found.reasons == ["1 Unavailable (row 'q': UNAVAILABLE: gone)"]
    assert found.sampled is None
    unverified = summarise([problem(UNVERIFIED)], SamplingConfig())
    assert math.isnan(unverified.accuracy)
    assert unverified.interval == (0, 1)


def test_categories_and_facets():
    problems = [
        problem("r", category="x", skills=["add", "count"], level="1"),
        problem("a", category="x", skills=["add"], level="2"),
        problem("r", category="y"),
        problem(UNVERIFIED, category="z", level="1"),
    ]
    found = summarise(problems, SamplingConfig())
    assert {name: (share["accuracy"], share["n"]) for name, share in found.by_category.items()} == {
        "x": (0.5, 2),
        "y": (1.0, 1),
    }
    skills = found.by_facet["skills"]
    assert {name: (share["accuracy"], share["n"]) for name, share in skills.items()} == {
        "add": (0.5, 2),
        "count": (1.0, 1),
    }
    assert set(found.by_facet["level"]) == {"1", "2"}


def test_samples():
    problems = [
        problem("r", "r", "r", "a", "r", category="x"),
        problem("r", "a", "a", "A ", "r", category="y"),
        problem("r", "r", "a", "b", None, category="y"),
    ]
    sampled = summarise(problems, SamplingConfig(n=4)).sampled
    values = {name: figure["value"] for name, figure in sampled.items() if "@" in name}
    assert values == {
        "mean@4": pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3),
        "pass@1": pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3),
        "pass@2": pytest.approx((1 + 1 / 2 + 1 / 2) / 3),
        "pass@4": 1.0,
        "maj@4": pytest.approx((1 + 0 + 1 / 3) / 3),
    }
    assert sampled["by_category"]["x"]["mean@4"]["value"] == 0.75
    low, high = sampled["mean@4"]["interval"]
    assert 0.25 <= low < 5 / 12 < high <= 0.75


def test_a_problem_with_too_few_verdicts_is_left_out_of_metrics_that_need_more():
    problems = [problem("-", "r", "r", UNVERIFIED, "a"), problem("-", UNVERIFIED, UNVERIFIED, UNVERIFIED, UNVERIFIED)]
    found = summarise(problems, SamplingConfig(n=4, k=[1, 3, 4]))
    sampled = found.sampled
    assert (found.errors, sampled["errors"], found.n) == (5, 5, 0)
    assert (sampled["mean@4"]["value"], sampled["mean@4"]["n"]) == (pytest.approx(2 / 3), 1)
    assert (sampled["pass@3"]["value"], sampled["maj@3"]["value"], sampled["pass@3"]["n"]) == (1.0, 1.0, 1)
    assert sampled["pass@4"]["n"] == 0
    assert math.isnan(sampled["pass@4"]["value"])
    assert math.isnan(found.accuracy)


def worst(outcomes: list[Outcome]):
    return {"worst": [float(all(outcome.correct for outcome in outcomes))], "none": []}


def test_a_benchmarks_own_metrics_of_greedy_and_sampled_answers():
    problems = [problem("r", "r", "a"), problem("r", "r", "r")]
    found = summarise(problems, SamplingConfig(n=2), aggregate=worst)
    assert found.aggregate["worst"]["value"] == 1.0
    assert math.isnan(found.aggregate["none"]["value"])
    assert found.sampled["aggregate"] == {"worst": 0.5}


def test_the_table_has_a_row_per_metric():
    problems = [
        problem("r", "r", "a", "r", category="sums"),
        problem("a", "a", "a", UNVERIFIED, category="sums", level="2"),
    ]
    result = summarise(problems, SamplingConfig(n=3), aggregate=worst)
    lines = printed(result_table({"mine": result}, "student"))
    assert ["mine", "greedy", "50.0%", "9.5 to 90.5", "2", "1", "0.0%"] in lines
    assert ["", "pass@3", "100.0%", "100.0 to 100.0", "1", "", ""] in lines
    assert ["", "worst, 3 passes", "0.0%", "", "", "", ""] in lines
    lines = printed(category_table({"mine": result}))
    assert ["mine", "sums", "greedy", "50.0%", "9.5 to 90.5", "2"] in lines
    assert ["", "sums", "mean@3", "33.3%", "0.0 to 66.7", "2"] in lines
    assert ["", "level: 2", "greedy", "0.0%", "0.0 to 79.3", "1"] in lines
    assert category_table({"mine": summarise([problem("r")], SamplingConfig())}) is None


def printed(table):
    """The cells of a table, as printed on a terminal of 80 columns."""
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]


@pytest.mark.parametrize(("n", "k", "ks"), [(0, [], []), (1, [], [1]), (6, [], [1, 2, 4, 6]), (8, [4, 1], [1, 4])])
def test_which_k_are_reported(n, k, ks):
    assert SamplingConfig(n=n, k=k).ks == ks


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling.n=4", "sampling.k=[1,8]"], "8 completions cannot be chosen from n=4"),
        (["greedy=false"], "greedy is false and sampling.n is 0"),
        (["data=[{name: a}, {name: a, split: test}]"], "two sets are called 'a'"),
        (["data=[{name: errors}]"], "a set has the name 'errors'"),
    ],
)
def test_contradictory_configs_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        load(EvalConfig, None, ["out=x", "student.path=y", *overrides])


@given(st.integers(1, 12), st.integers(0, 9), st.integers(1, 7), st.booleans())
def test_generation_batches_cover_every_completion_once_and_respect_the_batch_size(problems, n, batch_size, greedy):
    config = EvalConfig(
        out="x", student={"path": "y"}, greedy=greedy or not n, sampling=SamplingConfig(n=n), batch=batch_size
    )  # fmt: skip
    examples = [Example(str(i), ({"role": "user", "content": "?" * (i % 3)},), "r") for i in range(problems)]
    generated = []
    for batch in generation_batches(examples, config):
        assert len(batch.indices) * batch.group <= batch_size
        generated += [(index, batch.first + at) for index in batch.indices for at in range(batch.group)]
    numbers = [*([GREEDY] if config.greedy else []), *range(n)]
    assert sorted(generated) == sorted((index, number) for index in range(problems) for number in numbers)
