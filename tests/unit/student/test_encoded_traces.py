"""Traces in mapped files are those that are read row by row, whatever is in the file and however it was encoded."""

import base64
import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vold_trainer.config import StudentConfig
from vold_trainer.data.digest import digest
from vold_trainer.data.keys import row_keys, unique_names
from vold_trainer.data.traces import TraceRules
from vold_trainer.errors import RunError, UsageError
from vold_trainer.files import write_lines
from vold_trainer.student.batching import make_batch
from vold_trainer.student.encoded import EncodedTraces, cache, workers
from vold_trainer.student.encoded.cache import encoded_folder
from vold_trainer.student.encoded.encoder import EncodedRow
from vold_trainer.student.encoded.files import Keys, Writer
from vold_trainer.student.models import load_student
from vold_trainer.student.texts import DetachedTexts
from vold_trainer.student.traces import read_traces


@pytest.fixture(scope="module")
def student():
    return load_student(StudentConfig(path="pocket:student"))


def picture(size):
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "PNG")
    return stream.getvalue()


def image_rows(folder):
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures/one.png").write_bytes(picture((28, 28)))
    question = {"completion": "3", "reference": "3", "category": "sums", "tags": ["a", "b"]}
    url = f"data:image/png;base64,{base64.b64encode(picture((56, 28))).decode()}"
    twin = {"twin": "1 + 2?"}
    return [
        {**question, **twin, "id": "path", "prompt": "<image> how many?", "image": "pictures/one.png"},
        {**question, "id": "bytes", "prompt": "1 + 2?", "images": [url, str(folder / "pictures/one.png")]},
    ]


def valid_rows(student):
    spelled = student.tokenizer.eos_token
    exact = student.shield.marks.completion_ids("so 3")
    return [
        {"prompt": "1 + 2?", "completion": "so 3", "completion_ids": [*exact, student.eos_ids[0]]},
        {"id": "ids of another tokenizer", "prompt": "1 + 2?", "completion": "so 3", "completion_ids": [7, 8, 9]},
        {"id": "a", "prompt": f"what is {spelled}?", "completion": f"it is {spelled} and 3"},
        {"id": "a", "prompt": "5 - 2?", "completion": f"3{spelled}"},
        {"id": "a#2", "messages": [{"role": "system", "content": "add"}, {"role": "user", "content": "1 + 2?"}],
         "completion": "x" * 40, "parameters": {"tolerance": 1e-3, "deep": [None, {"é": "\u2028"}]}},
        {"id": 17, "prompt": "é\u2028", "completion": "é"},
    ]  # fmt: skip


def assert_same(path, student, rules=None, *, skip_broken=False, **options):
    """The traces, as they were read row by row before."""
    rules = rules or TraceRules(prefix="")
    expected = read_traces(path, student, skip_broken=skip_broken, rules=rules)
    folder = encoded_folder(path, student, rules, skip_broken=skip_broken, **options)
    traces = EncodedTraces(folder, path)
    assert len(traces) == len(expected)
    for trace, other in zip(traces, expected, strict=True):
        assert (trace.example, trace.ids, trace.example.where) == (other.example, other.ids, other.example.where)
        assert trace.example.pixels == other.example.pixels
    assert list(traces.keys) == row_keys([trace.example for trace in expected])
    assert traces.lengths.tolist() == [len(trace.ids) for trace in expected]
    assert traces.prompt_lengths.tolist() == [len(student.text_ids([trace.example])[0]) for trace in expected]
    assert traces.digest() == digest((trace.example, trace.ids) for trace in expected)
    return traces, expected


def test_every_kind_of_row_is_as_it_was_read_and_makes_the_same_batch(student, tmp_path):
    file = tmp_path / "traces.jsonl"
    write_lines(file, [*valid_rows(student), *image_rows(tmp_path)])
    traces, expected = assert_same(file, student)
    one, other = (
        make_batch(student, [trace.example for trace in them], [trace.ids for trace in them])
        for them in (traces, expected)
    )
    assert one.inputs.keys() == other.inputs.keys()
    for name, value in one.inputs.items():
        assert torch.equal(value, other.inputs[name]), name
    assert torch.equal(one.ids_N, other.ids_N)
    assert torch.equal(one.predicts_BS, other.predicts_BS)


@pytest.mark.parametrize("kind", ["array.json", "parquet"])
def test_other_files_too(kind, student, tmp_path):
    file = tmp_path / f"traces.{kind}"
    rows = [{"id": f"q{number}", "prompt": f"1 + {number}?", "completion": f"so {number}"} for number in range(5)]
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        rows = [
            {**row, "image": {"bytes": picture((28, 28 + number)), "path": None}} for number, row in enumerate(rows)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows))
    assert_same(file, student)


BROKEN = [
    b"{",
    b"[1]",
    b"\xff",
    b'{"prompt": "a", "completion": ""}',
    b'{"prompt": "", "completion": "a"}',
    b'{"prompt": "a", "completion": "b", "completion_ids": "1 2"}',
    b'{"prompt": "a", "completion": "b", "image": "nowhere.png"}',
    json.dumps({"prompt": "a", "completion": "1 " * 3000}).encode(),
]


@given(
    lines=st.lists(st.sampled_from([*range(4), *BROKEN, b"", b"  "]), min_size=1, max_size=8),
    limit=st.none() | st.integers(1, 5),
    skip_broken=st.booleans(),
    rows_of_a_part=st.integers(1, 4),
)
@settings(max_examples=20)
def test_faults_and_limits_are_as_before(lines, limit, skip_broken, rows_of_a_part, student, tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "traces.jsonl"
    texts = [json.dumps({"id": f"{line}", "prompt": f"{line}?", "completion": "1"}).encode() for line in range(4)]
    file.write_bytes(b"\n".join(texts[line] if isinstance(line, int) else line for line in lines))
    rules = TraceRules(limit=limit, prefix="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "PART_ROWS", rows_of_a_part)
        said = told_by(lambda: read_traces(file, student, skip_broken=skip_broken, rules=rules))
        assert told_by(lambda: encoded_folder(file, student, rules, skip_broken=skip_broken)) == said
        if said:
            assert list(file.parent.iterdir()) == [file]
        else:
            assert_same(file, student, rules, skip_broken=skip_broken)


def told_by(work):
    """What is said by the error that the work raises; empty if it raises none."""
    try:
        work()
    except UsageError as error:
        return str(error)
    return ""


def some_rows(file, count=6):
    write_lines(file, [{"id": f"q{n}", "prompt": f"1 + {n}?", "completion": f"so {n}"} for n in range(count)])
    return file


def test_a_mapped_column_that_no_row_has_is_an_error(student, tmp_path):
    file = some_rows(tmp_path / "traces.jsonl")
    with pytest.raises(UsageError, match=r"^columns\.completion is 'text': no row of .* has such a column"):
        encoded_folder(file, student, TraceRules({"completion": "text"}, prefix=""), skip_broken=True)
    assert_same(file, student, TraceRules({"completion": "prompt"}, 3, prefix=""))


def test_a_folder_is_used_again_until_something_changes_the_ids(student, tmp_path, monkeypatch, caplog):
    file = some_rows(tmp_path / "traces.jsonl")
    file.write_bytes(file.read_bytes() + b'\n{"prompt": 1}\n')
    rules = TraceRules(prefix="")
    made = {encoded_folder(file, student, rules, skip_broken=True)}
    seen = next(iter(made)).stat()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        student.tokenizer(["padding", "changes the backend's state"], padding=True)
        moved = tmp_path / "other" / "moved.jsonl"
        moved.parent.mkdir()
        moved.write_bytes(file.read_bytes())
        assert {
            encoded_folder(moved, student, rules, skip_broken=True, cache=file.with_name("traces.jsonl.encoded"))
        } == made
    assert next(iter(made)).stat() == seen
    assert f"skipped {moved}:8: " in caplog.text  # which is said in every run
    with pytest.raises(UsageError, match=rf"^{file}:8: .*Mend the row, or set skip_broken=true$"):
        encoded_folder(file, student, rules)

    def other(*, of=rules):
        folder = encoded_folder(file, student, of, skip_broken=True)
        assert folder not in made
        made.add(folder)

    other(of=TraceRules(limit=2, prefix=""))
    other(of=TraceRules({"category": "id"}, prefix=""))
    with monkeypatch.context() as patch:
        patch.setattr(student.processor, "chat_template", student.processor.chat_template + "{# another #}")
        other()
    with monkeypatch.context() as patch:
        patch.setattr(student, "vocab_size", student.vocab_size + 1)
        other()
    student.tokenizer.add_tokens(["<added>"])
    other()
    some_rows(file, 7)
    other()


def test_rows_without_ids_have_the_digest_of_their_place(student, tmp_path):
    """As before: their names in messages are part of what a resumed run compares."""
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for file in (one, other):
        write_lines(file, [{"prompt": "1?", "completion": "1"}, {"prompt": "2?", "completion": "2"}])
    for file in (one, other):
        assert_same(file, student, cache=tmp_path / "both")
    assert len(list((tmp_path / "both").iterdir())) == 1


def test_a_picture_that_changed_is_read_again(student, tmp_path):
    file = tmp_path / "traces.jsonl"
    write_lines(file, image_rows(tmp_path))
    before, _ = assert_same(file, student)
    (tmp_path / "pictures/one.png").write_bytes(picture((84, 28)))
    after, _ = assert_same(file, student)
    assert before.folder == after.folder
    assert after[0].example.pixels == 84 * 28
    (tmp_path / "pictures/one.png").unlink()
    with pytest.raises(UsageError, match=rf"^{file}:1: image .*one\.png.* cannot be read: .*Mend the row"):
        encoded_folder(file, student, TraceRules(prefix=""))


def test_a_part_of_the_traces_keeps_its_keys_and_has_a_digest_of_its_own(student, tmp_path):
    traces, expected = assert_same(some_rows(tmp_path / "traces.jsonl"), student)
    part = traces.select(np.array([True, False] * 3))
    assert [trace.ids for trace in part] == [trace.ids for trace in expected[::2]]
    assert [trace.ids for trace in part[1:]] == [trace.ids for trace in expected[2::2]]
    assert list(part.keys) == list(traces.keys[::2]) == ["q0", "q2", "q4"]
    assert part.digest() == traces.select(np.array([True, False] * 3)).digest()
    assert len({part.digest(), traces.digest(), traces.select(np.array([False, True] * 3)).digest()}) == 3
    assert traces.select(np.ones(6, bool)).digest() == traces.digest()


@given(names=st.lists(st.sampled_from(["", "a", "b", "a#2", "a#3", "a#2#2", "b#2#3", "row 0", "row 1#2"]), max_size=12))
@settings(max_examples=40)
def test_keys_are_unique_as_those_of_all_rows_in_memory(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    with Writer(folder / "partial") as writer:
        for name in names:
            writer.add(EncodedRow(b"\0\0\0\0", 1, name, b"{}", b"", 0))
        writer.finish(folder / "whole", Path("traces.jsonl"), {}, [])
    expected = unique_names([name or f"row {number}" for number, name in enumerate(names)])
    keys = EncodedTraces(folder / "whole", Path("traces.jsonl")).keys if names else []
    assert isinstance(keys, Keys | list)
    assert list(keys) == expected


def test_what_a_killed_process_left_is_never_read(student, tmp_path):
    file = some_rows(tmp_path / "traces.jsonl")
    rules = TraceRules(prefix="")
    folder = encoded_folder(file, student, rules)
    left = folder.with_name(f"partial-{folder.name}-0123")
    left.mkdir()
    ids = (folder / "ids.bin").read_bytes()
    (folder / "ids.bin").write_bytes(ids[:-4])  # a copy that broke off
    assert encoded_folder(file, student, rules) == folder
    assert (folder / "ids.bin").read_bytes() == ids
    assert not left.exists()
    (folder / "about.json").write_text("{")
    assert_same(file, student)
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_cannot_be_written_to_is_replaced_by_a_temporary_one(student, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    file = some_rows(tmp_path / "traces.jsonl")
    beside = tmp_path / "traces.jsonl.encoded"
    beside.write_text("no folder")
    traces, _ = assert_same(file, student)
    assert traces.folder.is_relative_to(tmp_path / "temporary")
    assert f"{beside} cannot be written to" in " ".join(capsys.readouterr().err.split())
    again, _ = assert_same(file, student)
    assert again.folder == traces.folder
    traces.folder.parent.chmod(0o777)  # anybody may have written into it
    other, _ = assert_same(file, student)
    assert other.folder.parent != traces.folder.parent


def test_a_full_disk_is_told_and_leaves_nothing(student, tmp_path, monkeypatch):
    file = some_rows(tmp_path / "traces.jsonl")

    def add(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "add", add)
    with pytest.raises(
        UsageError, match=r"encoded' \(No space left on device\): set traces_cache to a folder with room"
    ):
        encoded_folder(file, student, TraceRules(prefix=""))
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_grows_while_it_is_read_is_an_error(student, tmp_path, monkeypatch):
    file = some_rows(tmp_path / "traces.jsonl")
    finish = Writer.add

    def add(self, row):
        with file.open("a") as stream:
            stream.write("\n")
        finish(self, row)

    monkeypatch.setattr(Writer, "add", add)
    with pytest.raises(UsageError, match="was written to while it was read"):
        encoded_folder(file, student, TraceRules(prefix=""))


def test_two_runs_at_once_encode_once_and_read_the_same(student, tmp_path, monkeypatch, capsys):
    file = some_rows(tmp_path / "traces.jsonl", 40)
    added, both, add = [], threading.Event(), Writer.add

    def slow(self, row):
        added.append(row.name)
        both.wait(60)
        add(self, row)

    monkeypatch.setattr(Writer, "add", slow)
    monkeypatch.setattr(cache, "_say", lambda text: both.set() if "waiting for the traces" in text else None)
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(encoded_folder(file, student, TraceRules(prefix=""))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(added) == 40
    assert len(set(folders)) == 1
    assert len(folders) == 2
    assert_same(file, student)


def test_a_tokenizer_that_does_not_travel_is_used_here(student, tmp_path, monkeypatch, capsys):
    file = some_rows(tmp_path / "traces.jsonl")
    monkeypatch.setattr(student.tokenizer, "held", threading.Lock(), raising=False)
    with pytest.raises(TypeError):
        pickle.dumps(student.tokenizer)
    assert_same(file, student, workers=2)
    assert "one process encodes the traces" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_several_processes_give_the_same_bytes_and_the_same_errors(student, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART_ROWS", 2)
    file = tmp_path / "traces.jsonl"
    write_lines(file, [*valid_rows(student), *image_rows(tmp_path)] * 5)
    alone, _ = assert_same(file, student, workers=0)
    several, _ = assert_same(file, student, workers=2, cache=tmp_path / "several")
    for one in alone.folder.iterdir():
        assert one.read_bytes() == (several.folder / one.name).read_bytes(), one.name
    file.write_bytes(file.read_bytes() + b'{"prompt": 1}\n' + b"{\n" * 50)
    line = 5 * (len(valid_rows(student)) + 2) + 1
    with pytest.raises(UsageError, match=rf"^{file}:{line}: "):
        encoded_folder(file, student, TraceRules(prefix=""), workers=2)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command_with_its_status(student, tmp_path):
    file = some_rows(tmp_path / "traces.jsonl")
    with workers.encoding_workers(DetachedTexts.of(student), file, TraceRules(), 2) as pool:
        parts = [[(1, line)] for line in file.read_bytes().splitlines()]
        assert len(list(pool.encode(parts))) == 6
        pool.workers[0].process.send_signal(signal.SIGKILL)
        with pytest.raises(RunError, match="ended with status -9"):
            list(pool.encode(parts))


PROGRAM = """
import sys
from pathlib import Path
from vold_trainer.config import StudentConfig
from vold_trainer.data.traces import TraceRules
from vold_trainer.student.encoded import cache
from vold_trainer.student.models import load_student
cache.encoded_folder(Path(sys.argv[1]), load_student(StudentConfig(path="pocket:student")), TraceRules(), workers=2)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_leaves_no_process_and_no_folder_that_is_read(student, tmp_path):
    file = some_rows(tmp_path / "traces.jsonl", 20_000)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], start_new_session=True)
    beside = tmp_path / "traces.jsonl.encoded"
    while not any(path.stat().st_size for path in beside.glob("partial-*/rows.bin")):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.wait()
    while any(os.path.exists(f"/proc/{child}") for child in children):
        time.sleep(0.05)
    assert [path.name.startswith("partial-") for path in beside.iterdir() if path.is_dir()] == [True]
    assert_same(file, student)
    assert len(list(beside.iterdir())) == 1
