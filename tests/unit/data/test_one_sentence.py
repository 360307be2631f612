"""Each command that reads a form of rows says the same sentence of the same broken row: its place, its field, its value
and the remedy. What differs is the key by which the command would skip it.
"""

import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from vold_trainer.config import DataConfig
from vold_trainer.data.columns import is_null
from vold_trainer.data.traces import TraceRules, read_trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.sources import load_examples
from vold_trainer.verification.lines import LineParser

REMEDIES = (". Mend the row, or set data.skip_broken=true", ". Mend the row, or set skip_broken=true")
WHOLE = {"id": "q", "prompt": "1 + 1?", "reference": "2", "completion": "\\boxed{2}"}
PLAIN = (None, 3, -1.5, True, float("nan"), float("inf"), 10**400, "", "\ud83d", "[", "x" * 500, "[" * 2000)
NESTED = (
    *([], [1], {}, {"a": "b"}, [[["a"]]], [{"role": "me", "content": "?"}], [{"role": "user"}]),
    *([{"role": "system", "content": "?"}], [{"role": "user", "content": [{"type": "text"}]}]),
    [{"from": "human", "value": 3}],
)
VALUES = st.sampled_from((*PLAIN, *NESTED))
FIELDS = ("id", "prompt", "messages", "conversations", "reference", "parameters", "images", "tags", "category", "twin")


def train(file):
    """What `vold train`, `vold traces`, `vold eval` and `vold check` say."""
    load_examples(DataConfig(source=str(file)))


def sft(file):
    """What `vold sft` says, and an objective that learns traces."""
    read_trace_rows(file, lambda row: row, TraceRules(prefix=""))


def verify(file):
    parser = LineParser("math", file=str(file))
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip() and (error := parser.parse(line, number).error):
            raise UsageError(error)


def sentence(command, file):
    """The error of the command, without the key that skips the row; "" if there is none."""
    try:
        command(file)
    except UsageError as error:
        said = str(error)
        for remedy in REMEDIES:
            said = said.removesuffix(remedy)
        return said.replace("name its column with data.columns.", "name its column with columns.")
    return ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(FIELDS), value=VALUES)
@example(field="reference", value=10**400)
@example(field="images", value="none.png")
@example(field="images", value="A" * 5000)
def test_every_command_says_the_same_sentence_of_a_broken_row(tmp_path, field, value):
    row = {key: text for key, text in WHOLE.items() if key != "prompt" or field not in ("messages", "conversations")}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(WHOLE) + "\n" + json.dumps({**row, field: value}) + "\n")
    said = sentence(train, file)
    if field == "reference" and is_null(value):
        assert "field 'reference' is None" in said  # which a trace need not have
        assert not sentence(sft, file)
        return
    assert sentence(sft, file) == said
    if said:
        assert said.startswith(f"{file}:2: ")
        assert len(said) < 300 + len(str(file)) * 2
        assert ": " in said.removeprefix(f"{file}:2: ")
    verified = sentence(verify, file)
    if verified and said and field in ("reference", "parameters"):
        assert verified == said


LINES = {
    "not UTF-8": b'{"prompt": "\xb5"}',
    "no JSON": b"{",
    "digits": b'{"prompt": "q", "reference": ' + b"9" * 5000 + b"}",
    "deep": b'{"prompt": ' + b"[" * 101 + b"]" * 101 + b"}",
    "very deep": b"[" * 100_000,
    "twice": b'{"prompt": "a", "prompt": "b", "reference": "1", "completion": "1"}',
    "no object": b"[1, 2]",
    "a text": b'"prompt"',
    "half a character": b'{"prompt": "\\ud83d", "reference": "1", "completion": "1"}',
    "completion": b'{"prompt": "q", "reference": "1", "completion": 3}',
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_no_command_can_read_has_one_sentence(tmp_path, name):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(WHOLE).encode() + b"\n" + LINES[name] + b"\n")
    sentences = {sentence(command, file) for command in (train, sft, verify)[name == "completion" :]}
    assert len(sentences) == 1
    (said,) = sentences
    assert said.startswith(f"{file}:2: ")


@pytest.mark.parametrize("name", ["deep", "twice"])
def test_an_array_says_of_its_element_what_lines_say(tmp_path, name):
    file, lines = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    file.write_bytes(
        b"[" + json.dumps(WHOLE).encode() + b", " + LINES[name] + b", " + json.dumps(WHOLE).encode() + b"]"
    )
    lines.write_bytes(LINES[name])
    said = sentence(train, file)
    assert said.startswith(f"{file}[1]: not JSON (")
    assert said.split(")")[0].removeprefix(f"{file}[1]") == sentence(train, lines).split(")")[0].removeprefix(
        f"{lines}:1"
    )
    assert sentence(sft, file) == said
    assert len(load_examples(DataConfig(source=str(file), skip_broken=True))) == 2


def test_a_key_that_comes_twice_is_an_error_of_its_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "reference": "1", "x": {"y": 1, "y": 2}}\n{"prompt": "b", "reference": "2"}\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: not JSON \(the key 'y' twice in an object\)"):
        load_examples(DataConfig(source=str(file)))
    assert [row.reference for row in load_examples(DataConfig(source=str(file), skip_broken=True))] == ["2"]
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=r"rows\.parquet has the column 'prompt' twice: rename one"):
        load_examples(DataConfig(source=str(tmp_path / "rows.parquet")))


def test_a_page_that_differs_from_its_checksum_is_an_error(tmp_path):
    file = tmp_path / "rows.parquet"
    table = pyarrow.table({"prompt": [f"question {n}" for n in range(50)], "reference": [str(n) for n in range(50)]})
    pyarrow.parquet.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    content = file.read_bytes()
    begin = content.index(b"question 25")  # and none that stands in the statistics of its page
    for at in range(begin, begin + 60):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UsageError, match=r"rows\.parquet cannot be read from row 0 on: .*CRC|could not verify"):
            load_examples(DataConfig(source=str(file)))


def test_an_image_token_in_a_trace_is_a_place_of_its_picture_as_in_training(tmp_path):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**WHOLE, "prompt": "Look: <image> there", "image": "x.png"}))
    (trained,) = load_examples(DataConfig(source=str(file)))
    (learned,) = read_trace_rows(file, lambda row: row.example, TraceRules())
    assert learned.messages == trained.messages
    assert trained.messages[0]["content"][1] == {"type": "image"}
