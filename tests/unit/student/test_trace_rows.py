"""Rows of traces: read as `vold train` reads its rows, by the keys that the command has."""

import logging

import pytest
from tiny_students import tiny_student
from vold_packing.marks import COUNT, FIRST
from vold_trainer.config import StudentConfig
from vold_trainer.data.traces import TraceRules
from vold_trainer.errors import UsageError
from vold_trainer.files import write_lines
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return load_student(StudentConfig(path=str(tiny_student("qwen3", tmp_path_factory.mktemp("student")))))


ROWS = [{"question": f"1 + {number}?", "output": f"so {number + 1}"} for number in range(4)]
MAPPED = {"prompt": "question", "completion": "output"}


def test_columns_and_limit_are_those_of_train(student, tmp_path):
    file = tmp_path / "traces.jsonl"
    write_lines(file, ROWS)
    traces = read_traces(file, student, rules=TraceRules(MAPPED, 3, prefix=""))
    assert [trace.example.prompt_text for trace in traces] == [row["question"] for row in ROWS[:3]]
    assert [student.tokenizer.decode(trace.ids, skip_special_tokens=True) for trace in traces] == [
        "so 1",
        "so 2",
        "so 3",
    ]
    with pytest.raises(
        UsageError, match=r"^columns\.completion is 'text': no row of .* has such a column; columns there"
    ):
        read_traces(file, student, skip_broken=True, rules=TraceRules({**MAPPED, "completion": "text"}, prefix=""))


BROKEN = {
    "an empty completion": {"question": "a", "output": ""},
    "no text": {"question": "a", "output": 3},
    "half of a character": {"question": "\ud83d", "output": "a"},
    "too many control tokens": {
        "question": "a",
        "output": "".join(chr(FIRST + number) for number in range(COUNT)) + "<|im_start|>",
    },
    "ids that are none": {"question": "a", "output": "b", "completion_ids": "1 2"},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_named_or_skipped_and_does_not_count(broken, student, tmp_path, caplog):
    file = tmp_path / "traces.jsonl"
    write_lines(file, [ROWS[0], broken, *ROWS[1:]])
    for prefix in ("", "data."):
        with pytest.raises(UsageError, match=rf"^{file}:2: .*\. Mend the row, or set {prefix}skip_broken=true$"):
            read_traces(file, student, rules=TraceRules(MAPPED, prefix=prefix))
    with caplog.at_level(logging.WARNING):
        traces = read_traces(file, student, skip_broken=True, rules=TraceRules(MAPPED, 3))
    assert [trace.example.where for trace in traces] == [f"{file}:{line}" for line in (1, 3, 4)]
    assert f"skipped {file}:2: " in caplog.text
