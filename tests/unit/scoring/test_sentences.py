"""What services say of missing scores: bounded, in one line, a few for each reason, and printed as it is."""

import io
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from vold_client import DeadlineExceeded, InvalidArgument
from vold_trainer import cli
from vold_trainer.coldstart.traces import TracesSummary
from vold_trainer.data import Example
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.scores import RolloutScore, StepScores
from vold_trainer.sentences import MAX_CHARS, MAX_SENTENCES, Sentences, sentence

REASONS = st.sampled_from(["teacher: InvalidArgument", "verifier: Internal"])


TEXTS = st.builds(lambda text, times: text * times, st.text(max_size=20), st.integers(1, 200))


@settings(max_examples=20)
@given(st.lists(st.tuples(REASONS, TEXTS, TEXTS), max_size=8))
def test_the_sentences_of_a_step_are_bounded_and_one_line_whatever_a_service_says(said):
    sentences, counts = Sentences(), Counter[str]()
    for reason, row, text in said:
        counts[reason] += 1
        sentences.add(reason, row, text)
    for line in sentences.lines(counts):
        assert len(line) <= 100 + MAX_SENTENCES * (4 * MAX_CHARS + 20)  # repr may need several characters for one
        assert len(line.splitlines()) == 1
    joined = Sentences()
    joined.update(sentences)
    joined.update(sentences)
    assert joined == sentences


def test_the_first_sentences_that_differ_stand_beside_their_count():
    sentences = Sentences()
    for row, text in (("a", "one"), ("b", "one"), ("c", "two"), ("d", "three")):
        sentences.add("teacher: InvalidArgument", row, text)
    other = Sentences()
    other.add("teacher: DeadlineExceeded", "e", "too slow")
    sentences.update(other)
    counts = {"teacher: InvalidArgument": 4, "teacher: DeadlineExceeded": 1, "wrong": 7}
    assert sentences.describe(counts) == (
        "4 teacher: InvalidArgument (row 'a': one; row 'c': two); "
        "1 teacher: DeadlineExceeded (row 'e': too slow); 7 wrong"
    )
    assert sentences.describe({}) == ""


def test_a_long_sentence_is_cut_and_says_so():
    text = sentence(InvalidArgument("x\n" * 1000, field="completions[0].ids"))
    assert text.startswith("INVALID_ARGUMENT: ids: x x")
    assert text.endswith("…")
    assert len(text) == MAX_CHARS


def test_a_step_keeps_the_sentence_of_each_missing_score():
    rollouts = [Rollout(row, Example(f"row-{row}", (), "1"), (1,), (2,), "", False) for row in range(3)]
    scores = StepScores({rollout.row: RolloutScore() for rollout in rollouts})
    for rollout in rollouts:
        scores.add_missing("teacher", rollout, DeadlineExceeded("too slow", url="grpc://host:1"))
    scores.add_missing("verifier", rollouts[2], None, "no rule")
    assert scores.missing == {"teacher: DeadlineExceeded": 3, "verifier: no value": 1}
    assert scores.count_missing("teacher") == 3
    assert scores.describe_missing() == (
        "3 teacher: DeadlineExceeded (row 'row-0': DEADLINE_EXCEEDED: too slow [grpc://host:1]); "
        "1 verifier: no value (row 'row-2': no rule)"
    )
    assert scores.rows[2].missing == {
        "teacher": "DEADLINE_EXCEEDED: too slow [grpc://host:1]",
        "verifier": "no rule",
    }


def test_dropped_traces_are_said_with_their_reasons():
    sentences = Sentences()
    sentences.add("teacher: InvalidArgument", "a", InvalidArgument("too long"))
    summary = TracesSummary(3, 1, {"wrong": 1, "teacher: InvalidArgument": 1}, sentences)
    assert summary.describe_dropped() == ("1 wrong; 1 teacher: InvalidArgument (row 'a': INVALID_ARGUMENT: too long)")
    assert TracesSummary(1, 1, {}).describe_dropped() == "none"


def test_the_table_of_traces_says_what_became_of_all_completions_and_how_fast_they_came():
    summary = TracesSummary(1200, 1000, {"empty": 40, "wrong": 160}, tokens=5000, generated=6000, seconds=30, found=7)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary.table())
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    assert [row for row in cells if row] == [
        ["requested", "1,200"],
        ["written", "1,000"],
        ["wrong", "160"],
        ["empty", "40"],
        ["there before this command", "7"],
        ["tokens written", "5,000"],
        ["tokens generated now", "6,000"],
        ["tokens/s", "200"],
        ["seconds", "30.0"],
    ]
    console.print(TracesSummary(1, 1, {}).table())
    assert "unknown" in console.export_text()


@pytest.mark.parametrize("name", ["a [unix:host]", "[/INST]", "[bold]"])
def test_an_error_is_printed_with_its_brackets(name, monkeypatch, capsys):
    """rich takes [...] for its markup: a service's URL vanished from an error, and [/...] was a traceback."""
    monkeypatch.setattr(sys, "argv", ["vold", "report", f"runs/{name}"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert f"run folder 'runs/{name}' does not exist" in capsys.readouterr().err
