"""The report's pure parts: statistics, formats, token shades, which rollouts are read, the overlap of lanes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_lines, write_run
from vold_trainer.report import formats
from vold_trainer.report.figures import by_position, hidden_share, timeline
from vold_trainer.report.read import Span, read_runs
from vold_trainer.report.stats import ema, mean_and_spread, spread, wilson
from vold_trainer.report.tokens import MASKED, legend, shade_of


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_brackets_the_share(n, share):
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert low < high


def test_wilson_against_published_values():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Newcombe (1998), method 3
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


@given(st.lists(st.none() | st.floats(-1e6, 1e6)), st.floats(1, 100))
def test_ema_stays_in_range_and_keeps_gaps(values, span):
    smooth = ema(values, span)
    assert [v is None for v in values] == [v is None for v in smooth]
    present = [v for v in values if v is not None]
    for value in smooth:
        assert value is None or min(present) - 1e-3 <= value <= max(present) + 1e-3


def test_ema_of_a_constant_is_the_constant():
    assert ema([2.0, None, 2.0, 2.0], 10) == [2.0, None, pytest.approx(2.0), pytest.approx(2.0)]


@given(st.lists(st.integers()), st.integers(2, 20))
def test_spread_keeps_the_ends(items, count):
    chosen = spread(items, count)
    assert len(chosen) == min(len(items), count)
    assert not items or (chosen[0], chosen[-1]) == (items[0], items[-1])


def test_mean_and_spread_of_few():
    assert mean_and_spread([]) == (None, None)
    assert mean_and_spread([0.5]) == (0.5, None)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_formats():
    assert [formats.number(v) for v in (None, 0.0, 1234.0, 999.96, 12345.6, -0.0012345)] == [
        "–", "0", "1,234", "1,000", "12,346", "−0.00123",
    ]  # fmt: skip
    assert [formats.seconds(v) for v in (None, 0.84, 9.99, 42, 185, 7800)] == [
        "–", "0.8 s", "10.0 s", "42 s", "3 min 05 s", "2 h 10 min",
    ]  # fmt: skip
    assert (formats.percent(0.1234), formats.points(-0.05)) == ("12.3 %", "−5.0")


def test_shades_are_symmetric_and_a_missing_score_is_not_zero():
    assert [shade_of(v) for v in (None, 0.0, 0.1, -0.1, 0.2, -0.2, 9.0, -9.0)] == [
        MASKED, "g0", "g0", "g0", "g1", "g-1", "g5", "g-5",
    ]  # fmt: skip
    assert {shade.css for shade in legend()} == {shade_of(v / 20) for v in range(-100, 101)} | {MASKED}


def test_rollouts_are_spread_over_steps_and_outcomes(tmp_path):
    run = write_run(tmp_path / "vold", "vold", steps=41)
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    for row in rows[:8]:
        row["correct"], row["reward"] = None, None
    write_lines(run / "rollouts.jsonl", rows)
    (read,) = read_runs([run], rollout_steps=3, rollouts_a_step=4)
    assert sorted({rollout.step for rollout in read.rollouts}) == [1, 21, 41]
    assert {rollout.outcome for rollout in read.rollouts if rollout.step == 1} == {"unverified"}
    assert {rollout.outcome for rollout in read.rollouts if rollout.step == 41} == {"right", "wrong"}
    assert (len(read.rollouts), read.rollout_count) == (12, len(rows))


def test_scores_that_do_not_line_up_are_missing(tmp_path):
    row = {
        "step": 1,
        "tokens": ["a", "b"],
        "student_logprobs": [-1.0, -2.0],
        "teacher_logprobs": [-1.0],
        "reward": None,
    }
    write_lines(tmp_path / "rollouts.jsonl", [row, {"step": 1, "tokens": "ab"}])
    (run,) = read_runs([tmp_path])
    assert run.rollouts[0].teacher_logprobs == (None, None)
    assert len(run.problems) == 1


def test_a_step_written_again_after_a_resume_counts_once(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": s, "loss": float(i)} for i, s in enumerate([1, 2, 3, 2, 3, 4])])
    (run,) = read_runs([tmp_path])
    assert run.steps == [1, 2, 3, 4]
    assert run.series("loss") == [0.0, 3.0, 4.0, 5.0]


def test_names_tell_runs_apart(tmp_path):
    paths = [tmp_path / a / "vold" for a in ("one", "two")]
    for path in paths:
        path.mkdir(parents=True)
    assert [run.name for run in read_runs(paths)] == ["one/vold", "two/vold"]


def test_hidden_share_counts_an_instant_once():
    spans = [
        Span(1, "generate", 0, 4),
        Span(1, "teacher", 1, 3),
        Span(1, "verifier", 2, 6),
        Span(1, "optimise", 5, 7),
    ]
    assert hidden_share(spans) == pytest.approx(4 / 5)  # scoring covers 1 to 6, of which 4 to 5 has no other work
    assert hidden_share(spans[:1]) is None


def test_timeline_has_a_row_a_lane_and_only_its_steps():
    spans = [Span(step, lane, step, step + 0.5) for step in range(4) for lane in ("generate", "teacher", "extra")]
    figure = timeline(spans, [2, 3])
    assert [bar.y[0] for bar in figure.data] == ["generate", "teacher", "extra"]
    assert list(figure.data[0].base) == [0, 1]


def test_heat_map_colours_are_symmetric_about_zero(tmp_path):
    rows = [{"step": s, "gap_by_position": [-1.0, 0.25, None]} for s in (1, 2)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    (run,) = read_runs([tmp_path])
    figure = by_position(run, "gap_by_position", "nats")
    assert figure is not None
    assert figure.data[0].zmin == -figure.data[0].zmax == -1.0
    assert list(figure.data[0].z[2]) == [None, None]
