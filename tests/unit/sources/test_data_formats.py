"""The same rows as JSONL, as Parquet and as a data set are the same examples; where each of them can be wrong."""

import base64
import io
import json
import sys
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from vold_trainer.config import DataConfig
from vold_trainer.errors import UsageError
from vold_trainer.sources import load_examples

COLUMNS = {
    "prompt": "question",
    "reference": "solution.final",
    "images": "pics",
    "category": "extra.topic",
    "tags": "extra.tags",
    "twin": "words",
    "parameters": "judge",
}
datasets.disable_progress_bars()
PICTURE = datasets.Image()
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "solution": {"final": datasets.Value("string")},
        "pics": datasets.List(PICTURE),
        "extra": {"topic": datasets.Value("string"), "tags": datasets.List(datasets.Value("string"))},
        "words": datasets.Value("string"),
        "judge": {"tolerance": datasets.Value("float64"), "accept": datasets.List(datasets.Value("string"))},
        "prompt": datasets.Value("string"),
    }
)


def png(colour, size=(3, 2)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ROWS = st.fixed_dictionaries(
    {
        "question": WORDS,
        "solution": st.fixed_dictionaries({"final": st.text(st.characters(codec="utf-8"), max_size=6)}),
        "pics": st.lists(st.sampled_from(["red", "green", "blue"]).map(png), max_size=2),
        "extra": st.fixed_dictionaries({"topic": st.none() | WORDS, "tags": st.lists(WORDS, max_size=2)}),
        "words": st.none() | WORDS,
        "judge": st.none()
        | st.fixed_dictionaries({"tolerance": st.floats(0, 1)})
        | st.fixed_dictionaries({"accept": st.lists(WORDS, max_size=2)}),
        "prompt": st.none() | st.just("somebody else's column"),
        "marked": st.booleans(),
    }
)


def plain(row):
    """The row as JSON can have it."""
    return {**row, "pics": [address(picture) for picture in row["pics"]]}


def address(picture):
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def stored(row):
    return {**row, "pics": [{"bytes": picture, "path": None} for picture in row["pics"]]}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_jsonl_parquet_and_datasets_give_the_same_examples(rows):
    for index, row in enumerate(rows):
        row["id"] = f"row-{index}"
        if row.pop("marked"):
            row["question"] = "<image>".join([row["question"], *"x" * len(row["pics"])])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(plain(row)) + "\n" for row in rows))
        table = pa.Table.from_pylist([stored(row) for row in rows], schema=FEATURES.arrow_schema)
        pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=2)
        datasets.Dataset.from_list([stored(row) for row in rows], features=FEATURES).save_to_disk(folder / "saved")
        loaded = [
            load_examples(DataConfig(source=str(folder / source), columns=COLUMNS))
            for source in ("rows.jsonl", "rows.parquet", "saved")
        ]
        assert loaded[0] == loaded[1] == loaded[2]
        for row, example in zip(rows, loaded[0], strict=True):
            assert example.prompt_text.replace("[image]", "") == row["question"].replace("<image>", "")
            assert example.reference == row["solution"]["final"]
            assert [image.tobytes() for image in example.images] == [
                Image.open(io.BytesIO(picture)).tobytes() for picture in row["pics"]
            ]
            assert example.category == (row["extra"]["topic"] or "")
            assert example.meta.get("parameters") == row["judge"]
            assert (example.twin is None) == (row["words"] is None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of Parquet shards of two splits, 3 + 2 training rows, the fourth of them broken."""
    folder = tmp_path_factory.mktemp("shards")

    def write(name, *references):
        rows = [{"prompt": f"{name} {index}", "reference": reference} for index, reference in enumerate(references)]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / name)

    write("train-00000-of-00002.parquet", "1", "2", "3")
    write("train-00001-of-00002.parquet", None, "5")
    write("test-00000-of-00001.parquet", "6")
    return folder


def test_shards_are_read_in_order_and_a_broken_row_is_named_by_file_and_row(shards):
    config = DataConfig(source=str(shards), skip_broken=True)
    assert [example.reference for example in load_examples(config)] == ["1", "2", "3", "5"]
    with pytest.raises(UsageError, match=r"train-00001-of-00002\.parquet\[0\]: field 'reference' is None.*skip_broken"):
        load_examples(DataConfig(source=str(shards)))
    assert [example.reference for example in load_examples(DataConfig(source=str(shards), limit=2, offset=1))] == [
        "2",
        "3",
    ]
    assert [example.reference for example in load_examples(DataConfig(source=str(shards), split="test"))] == ["6"]
    with pytest.raises(UsageError, match=r"data\.split 'dev': the Parquet files of .* are of the splits test, train"):
        load_examples(DataConfig(source=str(shards), split="dev"))
    matched = load_examples(DataConfig(source=str(shards / "t*-00000-*.parquet")))
    assert [example.reference for example in matched] == ["6", "1", "2", "3"]


def test_what_is_no_parquet_or_breaks_off_is_named(tmp_path, shards):
    (tmp_path / "text.parquet").write_text("not Parquet at all")
    with pytest.raises(UsageError, match=r"text\.parquet cannot be read as Parquet"):
        load_examples(DataConfig(source=str(tmp_path / "text.parquet")))
    whole = (shards / "train-00000-of-00002.parquet").read_bytes()
    (tmp_path / "broken.parquet").write_bytes(whole[:8] + b"\xff" * 60 + whole[68:])
    with pytest.raises(UsageError, match=r"broken\.parquet cannot be read from row 0 on"):
        load_examples(DataConfig(source=str(tmp_path / "broken.parquet")))


def test_labels_are_read_by_name_and_json_columns_as_json(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "reference": 1, "parameters": {"tolerance": 1}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}], "reference": "x"},
    ]
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "one.jsonl").write_text("".join(json.dumps({**row, "id": i}) + "\n" for i, row in enumerate(rows)))
    loaded = load_examples(DataConfig(source=str(folder)))
    assert [e.prompt_text for e in loaded] == ["a", "b"]
    assert [(e.messages, e.reference, e.meta) for e in loaded] == [
        (e.messages, e.reference, e.meta) for e in load_examples(DataConfig(source=str(tmp_path / "one.jsonl")))
    ]
    labelled = datasets.Dataset.from_dict(
        {"prompt": ["a", "b"], "reference": ["1", "2"], "category": [1, 0]},
        features=datasets.Features(
            {
                "prompt": datasets.Value("string"),
                "reference": datasets.Value("string"),
                "category": datasets.ClassLabel(names=["algebra", "geometry"]),
            }
        ),
    )
    datasets.DatasetDict({"train": labelled, "test": labelled.select([1])}).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    assert [e.category for e in load_examples(DataConfig(source=saved))] == ["geometry", "algebra"]
    assert [e.id for e in load_examples(DataConfig(source=saved, split="test"))] == [f"{saved}:test[0]"]
    with pytest.raises(UsageError, match=r"data\.split 'dev': the data set of .* has the splits train, test"):
        load_examples(DataConfig(source=saved, split="dev"))


def test_images_of_a_data_set_stay_on_the_disk(tmp_path):
    rows = {"prompt": ["a"], "reference": ["1"], "image": [{"bytes": png("red"), "path": None}]}
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "reference": datasets.Value("string"), "image": PICTURE}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    (example,) = load_examples(DataConfig(source=str(tmp_path / "saved")))
    captured = [cell.cell_contents for cell in example.images.lazy_images[0]._read.__closure__]
    assert not any(isinstance(value, bytes) for value in captured)
    assert example.images[0].getpixel((0, 0)) == (255, 0, 0)


def test_a_data_set_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UsageError, match=r"data\.source 'nobody/nothing', data\.config 'main', data\.split 'train' can"
    ):
        load_examples(DataConfig(source="nobody/nothing", config="main"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"reference": "awnser"}, r"data\.columns\.reference is 'awnser'.*did you mean 'answer'\?|column 'awnser'"),
        (
            {"twin": "describtion"},
            r"data\.columns\.twin is 'describtion': .* such a column; did you mean|has no such column; did you mean",
        ),
        ({"refrence": "answer"}, r"data\.columns\.refrence: a row has no field 'refrence' here; did you mean 'refer"),
        ({"twin": ["a", "b"]}, r"data\.columns\.twin is \['a', 'b'\]: only images may come from several columns"),
    ],
)
def test_a_mapping_of_what_is_not_there_is_named(kind, columns, message, tmp_path):
    row = {"prompt": "a", "answer": "1", "description": "b"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "rows.saved")
    with pytest.raises(UsageError, match=message):
        load_examples(DataConfig(source=str(tmp_path / f"rows.{kind}"), columns=columns))


@pytest.mark.parametrize(("module", "source"), [("pyarrow", "rows.parquet"), ("datasets", "owner/name")])
def test_a_missing_extra_is_named(module, source, tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UsageError, match=rf"needs {module}, which is not installed: install vold with the extra 'data'"
    ):
        load_examples(DataConfig(source=source))


def test_an_offset_past_the_end_is_told_with_the_number_of_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1 + 1?", "reference": "2"}\n' * 3)
    with pytest.raises(UsageError, match=r"has 3 rows, and data\.offset skips 3,000: lower it"):
        load_examples(DataConfig(source=str(file), offset=3000))
    assert len(load_examples(DataConfig(source=str(file), offset=2))) == 1
    file.write_text("")
    with pytest.raises(UsageError, match="has no rows"):
        load_examples(DataConfig(source=str(file)))


def test_a_source_whose_rows_are_all_left_out_is_told_as_such(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1 + 1?"}\n' * 3)
    with pytest.raises(UsageError, match=r"all 3 rows are broken, and data\.skip_broken=true leaves them out"):
        load_examples(DataConfig(source=str(file), skip_broken=True))
