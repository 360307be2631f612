"""Chats of ShareGPT's form, options of multiple-choice rows, and data sets on disk without their own library."""

import json
import sys

import datasets
import pyarrow
import pytest
from vold_trainer.config import DataConfig
from vold_trainer.data.traces import TraceRules, read_trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.services.items import verifier_item
from vold_trainer.sources import load_examples

datasets.disable_progress_bars()
CHAT = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}, {"from": "human", "value": "and 2?"}]
ANSWER = {"from": "gpt", "value": "4"}
ONE = {"reference": "1"}
TRUTH = {"from": "assistant", "ground_truth": {"value": "4"}}


def write(path, *rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(file, **options):
    return load_examples(DataConfig(source=str(file), **options))


def contents(example):
    return [(message["role"], message["content"]) for message in example.messages]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    "row", [[*CHAT, TRUTH], {"conversations": [*CHAT, TRUTH]}, {"conversations": json.dumps([*CHAT, TRUTH])}]
)
def test_open_reasoner_zeros_own_form_is_read(tmp_path, name, row):
    (example,) = load(write(tmp_path / name, row))
    assert contents(example) == [("user", "1 + 1?"), ("assistant", "2"), ("user", "and 2?")]
    assert example.reference == "4"


def test_the_last_answer_of_a_chat_is_learned_and_no_part_of_the_prompt(tmp_path):
    file = write(tmp_path / "rows.jsonl", {"system": "Be brief.", "conversations": [*CHAT, ANSWER], "reference": "4"})
    (example,) = load(file)
    (trace,) = read_trace_rows(file, lambda row: row, TraceRules())
    assert trace.completion == "4"
    assert trace.example.messages == example.messages
    assert contents(example)[0] == ("system", "Be brief.")
    assert contents(example)[-1] == ("user", "and 2?")


def test_a_prompt_or_messages_are_read_before_a_chat(tmp_path):
    rows = [{"prompt": "p", "conversations": CHAT, "reference": "1"}]
    rows.append({"messages": [{"role": "user", "content": "m"}], "conversations": CHAT, "reference": "1"})
    file = write(tmp_path / "rows.jsonl", *rows)
    assert [example.prompt_text for example in load(file)] == ["p", "m"]
    file = write(
        tmp_path / "mapped.jsonl", {"conversations": "of a meeting", "prompt": "p", "reference": "1", "chat": CHAT}
    )
    (example,) = load(file, columns={"conversations": "chat"})
    assert example.prompt_text == "and 2?"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [*CHAT, ANSWER]}, r"field 'reference' is None: give the reference answer"),
        ({"conversations": [*CHAT, TRUTH], "reference": "5"}, r"'reference' is '5': its conversations have a 'ground"),
        ({"conversations": [*CHAT, {**TRUTH, "value": "x"}], **ONE}, r"'conversations' ends with an assistant's turn"),
        ({"conversations": [{"from": "me", "value": "x"}], **ONE}, r"field 'conversations\[0\].role' is 'me': roles"),
        ({"conversations": [TRUTH]}, r"field 'conversations' is \[\]: give a list of role and content"),
        ({"conversations": [*CHAT[:1], {"from": "gpt"}], **ONE}, r"\[1\]' is \{'role': 'gpt'\}: give role"),
        ([{"from": "human", "value": 3}, TRUTH], r"field 'conversations\[0\].content' is 3: give text, or a list of"),
        ([1, 2], r":1: a list, not an object: '\[1, 2\]'"),
    ],
)  # fmt: skip
def test_a_broken_chat_is_an_error_of_its_row(tmp_path, row, said):
    with pytest.raises(UsageError, match=said):
        load(write(tmp_path / "rows.jsonl", row if isinstance(row, list) else {"reference": None, **row}))


@pytest.mark.parametrize("options", [["Paris", "Rome"], {"A": "Paris", "B": "Rome"}, [{"A": "Paris"}, {"B": "Rome"}]])
def test_options_reach_the_verifier_beside_other_parameters(tmp_path, options):
    row = {"question": "Capital of Italy?", "answer": "B", "choices": options, "verifier": "choice"}
    template = "{{question}}{% for text in choices %} {{text}}{% endfor %}"
    file = write(tmp_path / "rows.jsonl", row, {**row, "parameters": {"options": {"A": "own"}}}, {**row, "choices": []})
    first, own, none = load(file, template=template, columns={"options": "choices"})
    item = verifier_item(first, "B", "math", {"accept": ["boxed"]})
    assert item.parameters == {"accept": ["boxed"], "options": {"A": "Paris", "B": "Rome"}}
    assert verifier_item(own, "B", "math", {}).parameters == {"options": {"A": "own"}}
    assert verifier_item(none, "B", "math", {}).parameters == {}
    assert all("options" not in example.meta for example in load(file, template=template))  # read where it is mapped


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["x"] * 27, "holds 27 texts, over the limit of 26"),
        ([["x"]], r"has \['x'\] for 'A': give a text or a number"),
        ([{"A": "1"}, {"A": "2"}], "names 'A' twice"),
        ("Paris", "holds 'Paris'"),
    ],
)
def test_options_that_are_none_are_an_error_of_their_row(tmp_path, options, said):
    row = {"prompt": "?", "reference": "A", "choices": options}
    with pytest.raises(UsageError, match=rf"rows\.jsonl:1: field 'options' \(column 'choices'\) {said}"):
        load(write(tmp_path / "rows.jsonl", row), columns={"options": "choices"})


def test_a_data_set_on_disk_needs_pyarrow_alone(tmp_path, monkeypatch):
    rows = {"prompt": ["a", "b"], "reference": [0.1, 4.0], "category": [1, 0]}
    features = {"prompt": "string", "reference": "float32"}
    labelled = datasets.Dataset.from_dict(
        rows,
        features=datasets.Features(
            {
                **{name: datasets.Value(kind) for name, kind in features.items()},
                "category": datasets.ClassLabel(names=["x", "y"]),
            }
        ),
    )
    datasets.DatasetDict({"train": labelled, "test": labelled.select([1])}).save_to_disk(tmp_path / "saved")
    sharded = datasets.concatenate_datasets([labelled] * 50)
    sharded.save_to_disk(tmp_path / "sharded", num_shards=3)
    monkeypatch.setitem(sys.modules, "datasets", None)
    examples = load(tmp_path / "saved")
    assert [(e.prompt_text, e.reference, e.category) for e in examples] == [("a", "0.1", "y"), ("b", "4", "x")]
    assert [e.prompt_text for e in load(tmp_path / "saved", split="test")] == ["b"]
    many = load(tmp_path / "sharded")
    assert [e.prompt_text for e in many] == ["a", "b"] * 50
    assert many[99].where == f"{tmp_path / 'sharded'}:train[99]"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("state.json", "{", r"state\.json cannot be read"),
        ("state.json", "[]", r"state\.json holds no object: save the data set again"),
        ("state.json", '{"_data_files": [{"filename": "../rows.arrow"}]}', r"state\.json names no files of its folder"),
        ("state.json", '{"_data_files": [{"filename": "none.arrow"}]}', r"none\.arrow cannot be read from row 0 on"),
        ("dataset_info.json", '{"features": {"category": {"_type": "ClassLabel", "names": []}}}', r"column 'category'"),
    ],
)  # fmt: skip
def test_a_data_set_on_disk_that_is_broken_is_named(tmp_path, name, text, said):
    rows = {"prompt": ["a"], "reference": ["1"], "category": [0]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        load(tmp_path / "saved")


def test_offsets_that_point_out_of_a_file_are_not_followed(tmp_path):
    """Arrow's streams have no checksums: pyarrow would read whatever lies there."""
    datasets.Dataset.from_dict({"prompt": ["a" * 40, "b" * 40], "reference": ["1", "2"]}).save_to_disk(
        tmp_path / "saved"
    )
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content = file.read_bytes()
    at = content.index(b"a" * 40) - 64
    offsets = content.index(pyarrow.py_buffer(bytes([40, 0, 0, 0, 80, 0, 0, 0])).to_pybytes(), at - 64)
    file.write_bytes(content[:offsets] + b"\xff\xff\xff\x7f" + content[offsets + 4 :])
    with pytest.raises(UsageError, match=r"\.arrow cannot be read from row 0 on"):
        load(tmp_path / "saved")
