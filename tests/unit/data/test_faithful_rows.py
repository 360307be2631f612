"""What a row says is what an example says: numbers, encodings, pictures, roles; or an error names row and field."""

import base64
import codecs
import io
import json
import math
import re
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from vold_trainer.config import DataConfig
from vold_trainer.data.images import read_rgb
from vold_trainer.data.jsonl import read_jsonl
from vold_trainer.data.numbers import number_text
from vold_trainer.errors import UsageError
from vold_trainer.sources import load_examples


def load(file, **options):
    return load_examples(DataConfig(source=str(file), **options))


def write_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS = {pyarrow.float16(): np.float16, pyarrow.float32(): np.float32, pyarrow.float64(): np.float64}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=16), min_size=1, max_size=20))
@example(values=[0.1, 4.0, -0.0, 1e-7, 60000.0])
def test_the_text_of_a_float_reads_back_as_the_same_value_of_its_type(kind, values, tmp_path_factory):
    values = [KINDS[kind](value / 3) for value in values] + [KINDS[kind](4.0)]
    count = len(values)
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    write_parquet(file, prompt=["q"] * count, reference=pyarrow.array(values, kind))
    for row, value in zip(load(file), values, strict=True):
        assert KINDS[kind](row.reference) == value
        assert len(row.reference) <= len(str(value))
    assert row.reference == "4"


@given(
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.decimals(-(10**6), 10**6, places=3))
)
def test_number_text_is_the_value_and_no_longer_than_it_has_to_be(value):
    text = number_text(value)
    assert type(value)(text) == value
    assert len(text) <= len(str(value)) or isinstance(value, Decimal)


@pytest.mark.parametrize("value", [True, None, math.nan, math.inf, Decimal("NaN"), "4", [1], b"4"])
def test_what_is_no_number_has_no_number_text(value):
    assert number_text(value) is None


def test_numbers_of_every_source_and_place_are_short(tmp_path):
    nested = pyarrow.array(
        [{"low": 0.1, "list": [0.2]}],
        pyarrow.struct({"low": pyarrow.float32(), "list": pyarrow.list_(pyarrow.float32())}),
    )
    file = write_parquet(
        tmp_path / "rows.parquet",
        prompt=["q"],
        id=pyarrow.array([7.0], pyarrow.float64()),
        category=pyarrow.array([3.0], pyarrow.float32()),
        reference=pyarrow.array([Decimal("4.50")], pyarrow.decimal128(5, 2)),
        parameters=nested,
    )
    (row,) = load(file)
    assert (row.id, row.category, row.reference) == ("7", "3", "4.5")
    assert row.meta["parameters"] == {"low": 0.1, "list": [0.2]}
    (row,) = load(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "reference": 4.0}))
    assert row.reference == "4"


def test_an_integer_column_that_has_nulls_stays_integers(tmp_path):
    """pandas writes it as floating point."""
    file = write_parquet(tmp_path / "rows.parquet", prompt=["q", "q"], reference=pyarrow.array([4.0, None]))
    with pytest.raises(UsageError, match=r"rows\.parquet\[1\]: field 'reference' is None"):
        load(file)
    assert [row.reference for row in load(file, skip_broken=True)] == ["4"]


TEXTS = ["2 + 3 = ?", "\u5c0f\u660e\u6709 2 + 3", "\u0645\u0627 2 + 3\u061f", "\U0001f600 2 + 3"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_unicode_encoding_with_its_mark_is_read(tmp_path, encoding, newline):
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": text, "reference": "5"}, ensure_ascii=False) for text in TEXTS]
    file.write_bytes((newline.join(rows) + newline).encode(encoding))
    assert [row.messages[0]["content"] for row in load(file)] == TEXTS
    assert [number for number, _ in read_jsonl(file)] == [1, 2, 3, 4]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE], ids=["utf-16-be", "utf-32-be"])
def test_the_mark_says_the_order_of_bytes(tmp_path, mark):
    file = tmp_path / "rows.jsonl"
    encoding = "utf-16-be" if len(mark) == 2 else "utf-32-be"
    file.write_bytes(mark + json.dumps({"prompt": "q", "reference": "5"}).encode(encoding))
    (row,) = load(file)
    assert row.reference == "5"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"rows\.jsonl is not UTF-(16|32), as it begins .*save it as UTF-8"):
        load(file)


@given(text=st.text(min_size=1), encoding=st.sampled_from(["gbk", "latin-1", "shift-jis", "cp1251", "utf-8"]))
@example(text="\u5c0f\u660e", encoding="gbk")
def test_a_line_in_another_encoding_is_an_error_of_its_row_or_read_as_what_it_is(text, encoding, tmp_path_factory):
    line = json.dumps({"prompt": text, "reference": "5"}, ensure_ascii=False).encode(encoding, errors="ignore")
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_bytes(b'{"prompt": "q", "reference": "1"}\n' + line + b"\n")
    try:
        expected = line.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(UsageError, match=rf"rows\.jsonl:2: not UTF-8 \(byte 0x{line[error.start]:02x} at position"):
            load(file)
        assert [row.reference for row in load(file, skip_broken=True)] == ["1"]
        return
    (_, _), (_, row) = read_jsonl(file)
    try:
        assert row == json.loads(expected)
    except json.JSONDecodeError:
        assert "rows.jsonl:2: not JSON" in str(row)


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "q", "reference": %s}' % ("9" * 5000),
        '{"prompt": "q", "reference": "1", "x": %s}' % ("[" * 200_000 + "]" * 200_000),
        '{"prompt": "q", "reference": "1", "x": ' + "[" * 200_000,
    ],
    ids=["digits", "deep", "deep and cut"],
)
def test_what_json_refuses_is_an_error_of_its_row(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "reference": "1"}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl:2: not JSON") as raised:
        load(file)
    assert len(str(raised.value)) < 400
    assert len(load(file, skip_broken=True)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, [4], {"a": 1}])
def test_a_reference_that_is_no_answer_is_an_error(tmp_path, value):
    with pytest.raises(UsageError, match=r"field 'reference' is .*give the reference answer as text or a number"):
        load(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "reference": value}))


def test_text_of_parquet_that_is_not_utf8_is_an_error_of_its_row(tmp_path):
    raw = pyarrow.array([b"fine", b"\xb5\xe0", b"too"], pyarrow.binary()).view(pyarrow.string())
    file = write_parquet(tmp_path / "rows.parquet", prompt=raw, reference=["1", "2", "3"])
    with pytest.raises(UsageError, match=r"rows\.parquet\[1\]: column 'prompt' cannot be read \('utf-8' codec"):
        load(file)
    assert [row.reference for row in load(file, skip_broken=True)] == ["1", "3"]


@pytest.mark.parametrize("field", ["id", "category", "prompt", "reference", "tags", "verifier"])
def test_half_of_a_character_is_found_in_every_field(tmp_path, field):
    row = {"prompt": "q", "reference": "1", field: ["\ud83d"] if field == "tags" else "a \ud83d b"}
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: its text holds '\\ud83d', which is half of a character"):
        load(write_lines(tmp_path / "rows.jsonl", row))


def ramp(top, dtype):
    return np.linspace(0, top, 256).astype(dtype).reshape(16, 16)


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (Image.fromarray(ramp(65535, np.uint16)), "png"),
        (Image.fromarray(ramp(65535, np.uint16)), "tiff"),
        (Image.fromarray(ramp(65535, np.int32)), "tiff"),
        (Image.fromarray(ramp(1, np.float32)), "tiff"),
        (Image.fromarray(ramp(255, np.uint8)), "png"),
    ],
    ids=["16 bits", "16 bits, tiff", "32 bits, tiff", "floating point", "8 bits"],
)
def test_grey_of_more_than_8_bits_is_scaled(tmp_path, picture, kind):
    file = tmp_path / f"picture.{kind}"
    picture.save(file)
    pixels = np.asarray(read_rgb(file)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].ravel() - np.arange(256)).max() <= 1


def test_a_transparent_grey_of_16_bits_is_white(tmp_path):
    Image.fromarray(ramp(65535, np.uint16)).save(tmp_path / "picture.png", transparency=0)
    pixels = np.asarray(read_rgb(tmp_path / "picture.png"))
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] < 5).all()


@pytest.mark.parametrize("values", [ramp(70_000, np.int32), ramp(2, np.float32), -ramp(1, np.float32)])
def test_pixels_of_no_known_range_are_an_error_of_the_row(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "picture.tiff")
    row = {"prompt": "q", "reference": "1", "images": ["picture.tiff"]}
    file = write_lines(tmp_path / "rows.jsonl", row)
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: image .*picture\.tiff' cannot be read: its pixels are from"):
        load(file, check_images="pixels")


def encoded(kind="png"):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_a_picture_in_base64_is_read_with_and_without_a_url(tmp_path, kind):
    text = base64.b64encode(encoded(kind)).decode()
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    rows = [
        {"prompt": "q", "reference": "1", "image": value} for value in (text, wrapped, f"data:image/x;base64,{text}")
    ]
    for row in load(write_lines(tmp_path / "rows.jsonl", *rows)):
        assert row.images[0].size == (24, 16)


@pytest.mark.parametrize(
    "value",
    ["A" * 5000, "~/picture.png", "http://host/" + "x" * 5000, "data:image/png;base64," + "!" * 5000, ["x" * 5000]],
)
def test_an_error_quotes_little_of_a_picture(tmp_path, value):
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: ") as raised:
        load(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "reference": "1", "image": value}))
    assert len(str(raised.value)) < 400
    assert "Mend the row" in str(raised.value)


@pytest.mark.parametrize(
    "row", [{"x" * 9000: 1}, {f"column {number}": 1 for number in range(5000)}], ids=["long", "many"]
)
def test_an_error_names_few_columns_of_a_row(tmp_path, row):
    file = write_lines(tmp_path / "rows.jsonl", {"prompt": "q", **row})
    for options in ({}, {"template": "{{question}}"}, {"columns": {"reference": "answers"}}):
        with pytest.raises(UsageError, match=r"prompt, (xxx|column 0)") as raised:
            load(file, **options)
        assert len(str(raised.value)) < 700 + len(str(file))


DEEP, LONG = "[" * 100_000 + "]" * 100_000, f"[{'9' * 5_000}]"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *(("messages", text, "is text, and not JSON (") for text in (DEEP, LONG, "[")),
        *(("twin_messages", text, "is text, and not JSON (") for text in (DEEP, LONG)),
        *(("parameters", text, "not JSON (") for text in (DEEP, LONG, "{")),
        (
            "image",
            "data:image/png;base64,\u00e9" + "A" * 5_000,
            "not base64 (string argument should contain only ASCII",
        ),
        ("image", "file://~/picture.png", "~ has no meaning in a row: write the whole path"),
        ("image", "file:///~/picture.png", "~ has no meaning in a row: write the whole path"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_text_that_python_cannot_read_is_an_error_of_its_row(field, value, said, tmp_path):
    row = {"prompt": "q", "reference": "1", field: value}
    if field == "messages":
        del row["prompt"]
    with pytest.raises(
        UsageError, match=r"rows\.jsonl:1: field '(messages|twin_messages|parameters|images)'"
    ) as raised:
        load(write_lines(tmp_path / "rows.jsonl", row))
    assert said in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_file_url_may_be_quoted(tmp_path):
    (tmp_path / "my picture.png").write_bytes(encoded())
    url = f"file://{tmp_path}/my%20picture.png"
    (row,) = load(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "reference": "1", "image": url}))
    assert row.images[0].size == (24, 16)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about the file
@given(data=st.data(), kind=st.sampled_from(["png", "jpeg", "gif", "webp", "bmp", "tiff", "avif"]))
def test_a_corrupted_picture_is_an_error_of_its_row_or_a_picture(data, kind, tmp_path_factory):
    content = bytearray(encoded(kind))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    folder = tmp_path_factory.mktemp("rows")
    (folder / "picture").write_bytes(content)
    file = write_lines(folder / "rows.jsonl", {"prompt": "q", "reference": "1", "image": "picture"})
    try:
        (row,) = load(file, check_images="pixels")
    except UsageError as error:
        assert re.match(r"[^\n]*rows\.jsonl:1: image[^\n]*$", str(error))  # noqa: PT017 - one or the other
    else:
        assert row.images[0].mode == "RGB"


@pytest.mark.parametrize(
    ("role", "expected"),
    [("human", "user"), ("User", "user"), (" HUMAN", "user"), ("user", "user"), ("tool", "tool")],
)
def test_a_known_name_of_a_role_is_that_role(tmp_path, role, expected):
    (row,) = load(
        write_lines(tmp_path / "rows.jsonl", {"messages": [{"role": role, "content": "q"}], "reference": "1"})
    )
    assert row.messages[0]["role"] == expected


def test_names_of_other_chats_are_read(tmp_path):
    turns = [("system", "be brief"), ("human", "1 + 1?"), ("gpt", "2"), ("human", "and 2?")]
    messages = [{"from": role, "value": text} for role, text in turns]
    (row,) = load(write_lines(tmp_path / "rows.jsonl", {"messages": messages, "reference": "4"}))
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user"]
    assert row.messages[1]["content"] == "1 + 1?"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "narrator", "content": "q"}], r"field 'messages\[0\].role' is 'narrator': roles are system, user"),
        ([{"role": "system", "content": "q"}], r"ends with the system's turn: a prompt ends with the user's; add the"),
        (
            [{"role": "user", "content": [{"type": "image", "path": "x.png", "max_pixels": 99}]}],
            r"field 'messages\[0\].content\[0\]' has 'max_pixels', which is not read: take it out",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {}}]}],
            r"has 'cache_control', which is not read",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.png", "detail": "high"}}]}],
            r"image_url' has 'detail', which is not read",
        ),
    ],
)
def test_what_is_not_read_is_an_error(tmp_path, messages, said):
    with pytest.raises(UsageError, match=said):
        load(write_lines(tmp_path / "rows.jsonl", {"messages": messages, "reference": "1"}))
