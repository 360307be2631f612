"""A run's folder: the history of its config, and files that are written whole or not at all."""

from pathlib import Path

import pytest
from vold_trainer.config.resuming import Change
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.runs.folder import extended, trim_after


def test_the_history_holds_what_a_step_has_used():
    first = extended([], [Change("optim.lr", 0.1, 0.2), Change("steps", 4, 8)], 2)
    assert [(each["after_step"], each["key"], each["now"]) for each in first] == [(2, "optim.lr", 0.2), (2, "steps", 8)]
    assert extended(first, [Change("optim.lr", 0.2, 0.1)], 2) == first[1:]  # back before any step
    later = extended(first, [Change("optim.lr", 0.2, 0.1)], 3)
    assert later == [*first, {"after_step": 3, "key": "optim.lr", "before": 0.2, "now": 0.1}]


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path, monkeypatch):
    rows = [{"step": step} for step in range(1, 5)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    write_text = Path.write_text

    def half(self, text, **options):
        write_text(self, text[: len(text) // 2], **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        trim_after(tmp_path, 2)
    assert read_json_lines(tmp_path / "metrics.jsonl") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_broken_lines_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n[2]\n"3"\n{"step": \xff}\n{"step": 4, "te\xff": 1}\n{"st')
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 4]
