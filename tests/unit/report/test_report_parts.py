"""The pure parts of the report: statistics, formats, token shades, selection of rollouts, overlap of lanes."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_lines, write_run
from vold_trainer.report import formats
from vold_trainer.report.compare import HEIGHT, WIDTH, KeyMetric, MetricComparison, config_differences, trend_of
from vold_trainer.report.figures import Line, by_position, curves, hidden_share, timeline
from vold_trainer.report.panels import render_other_metrics, render_sections
from vold_trainer.report.read import Span, read_runs
from vold_trainer.report.stats import ema, evenly_spaced, mean_and_std, wilson
from vold_trainer.report.tokens import MASKED, legend, shade_of, view_tokens


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_wilson_interval_contains_the_accuracy(n, accuracy):
    low, high = wilson(accuracy, n)
    assert 0 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1
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
def test_evenly_spaced_items_include_the_ends(items, count):
    chosen = evenly_spaced(items, count)
    assert len(chosen) == min(len(items), count)
    assert not items or (chosen[0], chosen[-1]) == (items[0], items[-1])


def test_mean_and_std_of_few_values():
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([0.5]) == (0.5, None)
    assert mean_and_std([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


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
    (read,) = read_runs([run], rollout_steps=3, rollouts_per_step=4)
    assert sorted({rollout.step for rollout in read.rollouts}) == [1, 21, 41]
    assert {rollout.outcome for rollout in read.rollouts if rollout.step == 1} == {"unverified"}
    assert {rollout.outcome for rollout in read.rollouts if rollout.step == 41} == {"right", "wrong"}
    assert (len(read.rollouts), read.rollout_count) == (12, len(rows))


def test_scores_of_the_wrong_length_are_missing(tmp_path):
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
    assert len(run.read_errors) == 1


def test_a_step_written_again_after_a_resume_counts_once(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": s, "loss": float(i)} for i, s in enumerate([1, 2, 3, 2, 3, 4])])
    (run,) = read_runs([tmp_path])
    assert run.steps == [1, 2, 3, 4]
    assert run.series("loss") == [0.0, 3.0, 4.0, 5.0]


def test_the_names_of_runs_are_unique(tmp_path):
    paths = [tmp_path / a / "vold" for a in ("one", "two")]
    for path in paths:
        path.mkdir(parents=True)
    assert [run.name for run in read_runs(paths)] == ["one/vold", "two/vold"]


def test_overlapping_scoring_counts_once_in_the_hidden_share():
    spans = [
        Span(1, "generate", 0, 4),
        Span(1, "teacher", 1, 3),
        Span(1, "verifier", 2, 6),
        Span(1, "optimise", 5, 7),
    ]
    assert hidden_share(spans) == pytest.approx(4 / 5)  # scoring covers 1 to 6, of which 4 to 5 has no other work
    assert hidden_share(spans[:1]) is None


def test_waiting_for_scores_hides_no_scoring():
    spans = [Span(1, "generate", 0, 2), Span(1, "teacher", 1, 4), Span(1, "wait", 2, 4)]
    assert hidden_share(spans) == pytest.approx(1 / 3)


def one_run(tmp_path, rows):
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, "time": 60.0 * step, **row} for step, row in rows])
    return read_runs([tmp_path])[0]


def test_a_rarely_measured_metric_is_a_line_with_its_minutes(tmp_path):
    rows = [(step, {"overlap/ratio": step / 100} if step % 10 == 0 else {}) for step in range(1, 31)]
    figure = curves([one_run(tmp_path, rows)], [Line("overlap/ratio", "all")], share=True)
    raw, smooth = figure.data
    assert list(raw.x) == list(smooth.x) == [10, 20, 30]
    assert list(raw.y) == [0.1, 0.2, 0.3]
    assert list(smooth.customdata) == [10.0, 20.0, 30.0]
    assert (raw.meta["kind"], smooth.meta["kind"], smooth.mode) == ("raw", "smooth", "lines+markers")


def test_a_constant_line_has_an_axis_from_0(tmp_path):
    run = one_run(tmp_path, [(step, {"lr": 1e-4, "missing/teacher": 0.0, "teacher/gap": -2.0}) for step in (1, 2, 3)])
    ranges = [
        tuple(curves([run], [Line(key, key)]).layout.yaxis.range) for key in ("lr", "missing/teacher", "teacher/gap")
    ]
    assert ranges == [(0.0, 2e-4), (0.0, 1.0), (-4.0, 0.0)]


def test_outcomes_and_runs_have_the_same_colour_in_every_panel(tmp_path):
    runs = [write_run(tmp_path / name, name, steps=4) for name in ("grpo", "vold")]
    seen = {}
    for section in render_sections(read_runs(runs[:1])):
        for panel in section.panels:
            for trace in panel.figure.data:
                seen.setdefault(trace.name, set()).add(trace.line.color)
    assert len(seen["right"]) == len(seen["wrong"]) == len(seen["teacher"]) == 1
    by_run = {"grpo": set(), "vold": set()}
    for section in render_sections(read_runs(runs)):
        for panel in section.panels:
            for trace in panel.figure.data:
                if trace.name and trace.meta:
                    by_run[trace.name.split(" · ")[0]].add(trace.line.color)
    assert [len(colours) for colours in by_run.values()] == [1, 1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400))
def test_a_trend_stays_in_its_box_and_in_the_range_of_its_values(values):
    trend = trend_of([None, *values, None])
    numbers = [float(number) for number in re.findall(r"[\d.]+", trend.path)]
    assert all(0 <= x <= WIDTH for x in numbers[::2])
    assert all(0 <= y <= HEIGHT for y in numbers[1::2])
    assert min(values) - 1e-6 <= trend.end <= max(values) + 1e-6


def test_a_trend_by_hand():
    assert trend_of([None, None]) is None
    trend = trend_of([float(value) for value in range(20)])
    assert (trend.start, trend.end) == (0.5, 18.5)
    assert trend.path.startswith("M2.0 26.0L")
    assert trend.path.endswith("L118.0 2.0")


def test_changes_have_a_sign_unless_they_are_0():
    first, higher = trend_of([0.25]), trend_of([0.5])
    share, plain = (MetricComparison(KeyMetric("k", "k", unit), (first, higher)) for unit in ("%", ""))
    assert [share.change(higher, first), share.change(first, higher)] == ["+25.0", "−25.0"]
    assert [plain.change(higher, first), plain.change(first, higher)] == ["+0.25", "−0.25"]
    assert [share.change(trend_of([0.25001]), first), share.change(None, first)] == ["0.0", ""]


def test_configurations_are_compared_key_by_key(tmp_path):
    texts = (
        "out: a\nsteps: 5\nobjective: {name: vold, beta: 0.1}\ntrackers: []\nteacher: {url: x, model: "
        "}\nsame: {x: null}\n",
        "out: b\nsteps: 5\nobjective: {name: grpo}\ntrackers: [tensorboard]\nteacher: null\nsame: {x: null}\n",
    )
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "c").mkdir()
    assert config_differences(read_runs([tmp_path / name for name in "abc"])) == [
        ("objective.name", ["vold", "grpo", "–"]),
        ("objective.beta", ["0.1", "–", "–"]),
        ("trackers", ["[]", "[tensorboard]", "–"]),
        ("teacher", ["set", "null", "–"]),
    ]


def test_an_evaluation_may_have_further_metrics(tmp_path):
    metrics = {"pass@4": {"value": 0.5, "interval": [0.4, 0.6]}, "mean@4": 0.25, "mean@4_interval": [0.2, 0.3]}
    raw = {"text": {"accuracy": 0.5, "n": 4, **metrics, "note": "words"}, "errors": 0}
    (tmp_path / "eval.json").write_text(json.dumps(raw))
    (run,) = read_runs([tmp_path])
    measures = run.evaluation.scores["text"].measures
    assert {name: (m.value, m.interval) for name, m in measures.items()} == {
        "pass@4": (0.5, (0.4, 0.6)), "mean@4": (0.25, (0.2, 0.3)),
    }  # fmt: skip
    assert [formats.measure(*pair) for pair in (("pass@4", 0.5), ("mean_length", 37.25))] == ["50.0 %", "37.2"]


def test_an_evaluation_of_sampled_answers_is_read_completely(tmp_path):
    """As `vold eval` writes it: greedy and sampled metrics, by category and facet, and a benchmark's own metrics."""
    rate = {"accuracy": 0.5, "n": 4, "interval": [0.2, 0.8]}
    sampled = {"n": 4, "temperature": 0.7, "top_p": 1.0, "errors": 0, "mean_length": 9.0, "truncated": 0.5}
    sampled |= {"mean@4": {"value": 0.25, "interval": [0.2, 0.3], "n": 4}, "pass@4": {"value": 1.0, "interval": None}}
    sampled |= {"by_category": {"lines": {"mean@4": {"value": 0.75, "interval": [0.5, 1.0], "n": 2}}}}
    sampled |= {"aggregate": {"worst_case": 0.125}}
    raw = {
        **rate, "by_category": {"lines": rate}, "errors": 0, "mean_length": 12.5, "truncated": 0.0, "problems": 4,
        "by_facet": {"grade": {"7": rate}}, "sampled": sampled,
        "aggregate": {"worst_case": {"value": 1.0, "interval": [0.5, 1.0], "n": 2}},
    }  # fmt: skip
    (tmp_path / "eval.json").write_text(json.dumps({"image": raw, "errors": 0, "weights": "abc", "seed": 1}))
    (run,) = read_runs([tmp_path])
    (score,) = run.evaluation.scores.values()
    assert {name: (m.value, m.interval) for name, m in score.measures.items()} == {
        "mean_length": (12.5, None), "truncated": (0.0, None), "worst_case": (1.0, (0.5, 1.0)),
        "mean@4": (0.25, (0.2, 0.3)), "pass@4": (1.0, None), "worst_case, sampled": (0.125, None),
    }  # fmt: skip
    assert formats.measure("worst_case", 1.0, score.measures["worst_case"].share) == "100.0 %"
    assert {name: part.accuracy for name, part in score.by_category.items()} == {"lines": 0.5, "grade: 7": 0.5}
    assert score.by_category["lines"].measures["mean@4"].value == 0.75


def test_lanes_of_several_processes_are_separate(tmp_path):
    lanes = ["generate", "generate 1", "teacher 1", "left over"]
    rows = [{"step": 1, "lane": lane, "start": i, "end": i + 1} for i, lane in enumerate(lanes)]
    write_lines(tmp_path / "timeline.jsonl", rows)
    (run,) = read_runs([tmp_path])
    assert [(span.lane, span.process) for span in run.timeline] == [
        ("generate", 0), ("generate", 1), ("teacher", 1), ("left over", 0),
    ]  # fmt: skip
    figure = timeline(run.timeline, [1])
    assert [bar.y[0] for bar in figure.data] == ["generate", "generate 1", "teacher 1", "left over"]


def test_work_of_one_process_hides_no_scoring_of_another():
    spans = [Span(1, "teacher", 0, 2), Span(1, "generate", 0, 2, 1), Span(1, "teacher", 1, 3, 1)]
    assert hidden_share(spans) == pytest.approx(1 / 4)
    assert hidden_share([*spans, Span(1, "outage", 0, 3)]) == pytest.approx(1 / 4)


def test_staleness_has_a_panel_if_it_is_not_0(tmp_path):
    titles = []
    for name, age in (("now", 0.0), ("ahead", 1.0)):
        (tmp_path / name).mkdir()
        run = one_run(tmp_path / name, [(step, {"staleness": age, "mismatch/k1": 0.1}) for step in (1, 2)])
        titles.append([panel.title for section in render_sections([run]) for panel in section.panels])
        assert render_other_metrics([run]) == []
    assert titles == [["Rollout mismatch"], ["Rollout mismatch", "Staleness"]]


def test_without_a_teacher_no_score_is_missing(tmp_path):
    row = {"step": 1, "tokens": ["a"], "student_logprobs": [-1.0], "teacher_logprobs": [None]}
    write_lines(tmp_path / "rollouts.jsonl", [row])
    (run,) = read_runs([tmp_path])
    assert not run.has_teacher
    assert [view.css for view in view_tokens(run.rollouts[0])[0]] == [MASKED]
    ((view,), _, _) = view_tokens(run.rollouts[0], scored=run.has_teacher)
    assert (view.css, view.title) == ("plain", "student −1.00")


def test_a_timeline_has_a_row_per_lane_and_only_its_steps():
    spans = [Span(step, lane, step, step + 0.5) for step in range(4) for lane in ("generate", "teacher", "extra")]
    figure = timeline(spans, [2, 3])
    assert [bar.y[0] for bar in figure.data] == ["generate", "teacher", "extra"]
    assert list(figure.data[0].base) == [0, 1]


def test_heat_map_colours_are_symmetric_about_0(tmp_path):
    rows = [{"step": s, "gap_by_position": [-1.0, 0.25, None]} for s in (1, 2)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    (run,) = read_runs([tmp_path])
    figure = by_position(run, "gap_by_position", "nats")
    assert figure is not None
    assert figure.data[0].zmin == -figure.data[0].zmax == -1.0
    assert list(figure.data[0].z[2]) == [None, None]
