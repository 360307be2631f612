"""A file that is one array of JSON has the rows that json.loads has, and an error names the line or the element."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vold_trainer.config import DataConfig
from vold_trainer.data.json_array import holds_array, read_json_array
from vold_trainer.errors import UsageError
from vold_trainer.sources.examples import load_examples

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(VALUES, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    ascii_only=st.booleans(),
)
def test_the_elements_are_those_of_json(tmp_path, rows, indent, encoding, ascii_only):
    file = tmp_path / "rows.json"
    file.write_bytes(
        ("\n " + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n").encode(encoding, "replace")
    )
    expected = json.loads(file.read_bytes().decode(encoding))
    assert holds_array(file)
    found = dict(read_json_array(file))
    assert list(found) == list(range(len(expected)))
    for index, value in enumerate(expected):
        if isinstance(value, dict):
            assert found[index] == value
        else:
            assert str(found[index]).startswith(f"{file}[{index}]: a {type(value).__name__}, not an object")


def test_an_array_is_a_source_of_rows_as_lines_are(tmp_path):
    rows = [{"prompt": f"What is {n}+1?", "answer": n + 1} for n in range(3)]
    array, lines = tmp_path / "rows.json", tmp_path / "lines.json"
    array.write_text(json.dumps(rows, indent=2))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_array, of_lines = (load_examples(DataConfig(source=str(file))) for file in (array, lines))
    assert [e.messages for e in of_array] == [e.messages for e in of_lines]
    assert [e.reference for e in of_array] == ["1", "2", "3"]
    assert of_array[1].where == f"{array}[1]"
    array.write_text(json.dumps([rows[0], {"prompt": "no answer"}]))
    with pytest.raises(UsageError, match=r"rows\.json\[1\]: field 'reference'"):
        load_examples(DataConfig(source=str(array)))
    assert len(load_examples(DataConfig(source=str(array), skip_broken=True))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', "rows.json:2: not JSON (a comma or the end of the array belongs here)"),
        ('[{"a": 1},\n\n{"a" 2}]', "rows.json:3: not JSON"),
        ('[{"a": 1},\n]', "rows.json:2: not JSON"),
        ('[{"a": 1}', "rows.json:1: not JSON (a comma or the end"),
        ('[{"a": 1}]\n{"b": 2}', "rows.json:2: not JSON (the array has ended before)"),
        ("[" * 100_000, "rows.json:1: not JSON"),
        ('[{"a": ' + "9" * 5000 + "}]", "rows.json:1: not JSON"),
    ],
)
def test_what_is_no_array_of_json_is_an_error_with_its_line(tmp_path, text, message):
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(UsageError) as raised:
        list(read_json_array(file))
    assert message in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(file))
