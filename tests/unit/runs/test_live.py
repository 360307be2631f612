"""The live view: sparklines, its size in every terminal, and the lines without a terminal."""

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from vold_trainer import terminal
from vold_trainer.runs.live import BLOCKS, SFT_TABLES, TRAIN_TABLES, Dashboard, readable, sparkline

FINITE = st.floats(-1e9, 1e9)


@given(st.lists(FINITE, max_size=80), st.integers(0, 30))
def test_a_sparkline_has_a_block_a_value_and_no_more_than_its_cells(values, cells):
    line = sparkline(values, cells)
    assert len(line) == min(len(values), cells)
    assert set(line) <= set(BLOCKS)


@given(st.lists(FINITE, min_size=2, max_size=30))
def test_a_sparkline_rises_where_the_values_do(values):
    line = sparkline(values, len(values))
    for (a, b), (low, high) in zip(pairwise(values), pairwise(line), strict=True):
        assert (b <= a) or BLOCKS.index(high) >= BLOCKS.index(low)
        assert (b >= a) or BLOCKS.index(high) <= BLOCKS.index(low)


def test_sparklines_by_hand():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 8, 8], 2) == "▁█"
    assert sparkline([5.0, 5.0, 5.0], 10) == "▁▁▁"
    assert sparkline([], 10) == ""


def test_values_read_as_their_unit_says():
    cases = ((0.1234, "%"), (-0.5, "nats"), (12345.6, "a second"), (37.25, "tokens"))
    assert [readable(*each) for each in cases] == ["12.3 %", "−0.5", "12,346", "37.2"]


def view(width, height=40, *, terminal=True):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal, color_system=None)
    state = [("teacher", "Qwen3-8B · 3 under way · last request 0.41 s"), ("verifier", "math · 0 under way")]
    board = Dashboard("vold on text prompts", 100, TRAIN_TABLES, console, service_states=lambda: state)
    return board, console


def metrics(step):
    values = {row.key: step / 100 for table in TRAIN_TABLES for row in table}
    return values | {"missing/teacher": float(step == 40), "gap_by_position": [0.1], "teacher/k2_correct": None}


@pytest.mark.parametrize("width", [24, 45, 60, 80, 104, 200])
@pytest.mark.parametrize("height", [6, 12, 40])
def test_the_view_fits_the_terminal_and_keeps_the_first_metrics(width, height):
    board, console = view(width, height)
    for step in range(1, 41):
        board.update(step, **metrics(step))
    with console.capture() as capture:
        console.print(board.render())
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any("reward" in line and "0.4" in line for line in lines)
    assert any("40/100" in line for line in lines)
    assert any("teacher" in line and "Qwen3" in line for line in lines)
    assert not any("k2, right" in line for line in lines)  # it has no values
    if width >= 60:
        assert "█" in capture.get()


def test_in_a_terminal_the_table_follows_the_view():
    board, console = view(100)
    with board:
        for step in range(1, 101):
            board.update(step, **metrics(step))
    text = console.file.getvalue()
    table = text[text.rindex("100 of 100 steps") :]
    (reward,) = [line for line in table.splitlines() if line.startswith("reward ")]
    assert reward.split()[1:3] == ["0.055", "0.955"]
    assert "missing, teacher (1 in all)" in table


def test_without_a_terminal_there_is_a_line_every_tenth_and_the_table(monkeypatch):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0)
    board, console = view(100, terminal=False)
    with board:
        for step in range(1, 101):
            board.update(step, **metrics(step))
    lines = console.file.getvalue().splitlines()
    progress = [line for line in lines if line.startswith("vold on text prompts: ") and "steps" not in line]
    assert [line.split()[4] for line in progress] == [str(10 * tenth) for tenth in range(1, 11)]
    assert progress[0].endswith("10 of 100  reward 0.1  length 0.1")
    assert any(line.startswith("figure") for line in lines)


def test_without_a_terminal_short_work_leaves_no_line_but_the_table(monkeypatch):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 3600)
    board, console = view(100, terminal=False)
    with board:
        for step in range(1, 101):
            board.update(step, **metrics(step))
    (line, *_) = console.file.getvalue().splitlines()
    assert line.startswith("vold on text prompts: 100 of 100 steps, 100 here")


@given(st.integers(1, 300), st.data())
def test_lines_are_paced_by_tenths_and_by_time(total, data):
    done = data.draw(st.integers(0, total))
    lines = terminal.PacedLines(total, done)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "LINE_SECONDS", 3600)
        assert not any(lines.are_due(number) for number in range(done, total + 1))
        patch.setattr(terminal, "LINE_SECONDS", 0)
        due = [number for number in range(done, total + 1) if lines.are_due(number)]
    assert [10 * number // total for number in due] == sorted({10 * n // total for n in range(done, total + 1)})[1:]


def test_a_resumed_run_keeps_its_trends_and_a_run_without_steps_prints_nothing():
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    history = [{"step": step, "loss": 3.0, "lr": None} for step in range(1, 21)]
    with Dashboard("sft", 40, SFT_TABLES, console, done=20, history=history) as board:
        assert board.values["loss"] == [3.0] * 20
    assert console.file.getvalue() == ""
    with board:
        board.update(40, loss=1.0)
    text = console.file.getvalue()
    assert "40 of 40 steps, 1 here" in text
    assert next(line for line in text.splitlines() if line.startswith("loss")).split()[1:3] == ["3", "2"]
