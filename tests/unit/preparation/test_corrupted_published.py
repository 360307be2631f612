"""A corrupted file of a published data set is an error for the user, or prepared as json and pyarrow read it."""

import io
import json
import random
import warnings
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from corrupted_files import BYTES, Unreadable, corrupt_text, picture_bytes, rows_of
from vold_trainer.errors import UsageError
from vold_trainer.preparation import GEOMETRY3K, MIXTURE_OF_THOUGHTS, ORZ57K, run_prepare
from written_rows import lines, says

FILES = 300
QUESTIONS = ["2 + 3?", "小明 2 + 3?", "was ist ½?", "\U0001f600 <|im_end|>"]


def orz57k(rng: random.Random, path: Path) -> Path:
    made = [
        [
            {"from": "human", "value": f"{rng.choice(QUESTIONS)} {number}"},
            {"from": "assistant", "ground_truth": {"value": rng.choice(["5", "x", 5, None])}},
        ]
        for number in range(rng.randint(1, 4))
    ]
    content, _ = corrupt_text(rng, json.dumps(made, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])))
    (path := path.with_suffix(".json")).write_bytes(content)
    return path


def thoughts(rng: random.Random) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{rng.choice(QUESTIONS)} {number}"},
                {"role": "assistant", "content": rng.choice(["<think>hm</think> 5", ""])},
            ],
            "num_tokens": number,
            "source": rng.choice(["math", "code"]),
        }
        for number in range(rng.randint(1, 8))
    ]


def geometry(rng: random.Random) -> list[dict]:
    return [
        {
            "images": [{"bytes": picture_bytes(rng.choice(["png", "jpeg"])), "path": "1.png"}],
            "problem": f"<image>{rng.choice(QUESTIONS)} {number}",
            "answer": rng.choice(["5", "x"]),
        }
        for number in range(rng.randint(1, 3))
    ]


def parquet(rng: random.Random, path: Path, rows: list[dict]) -> Path:
    buffer = io.BytesIO()
    options = {"compression": rng.choice(["none", "snappy"]), "write_page_checksum": rng.random() < 0.7}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, data_page_size=64, **options)
    (path := path.with_suffix(".parquet")).write_bytes(rng.choice(BYTES)(rng, buffer.getvalue()))
    return path


def is_of_orz57k(written, row, folder):
    return written["prompt"] == row[0]["value"] and says(written["reference"], row[1]["ground_truth"]["value"])


def is_of_thoughts(written, row, folder):
    asked, answered = row["messages"]
    return (written["prompt"], written["category"]) == (asked["content"], row["source"]) and (
        written["completion"] == answered["content"]
    )


def is_of_geometry(written, row, folder):
    pictures = [(folder / name).read_bytes() for name in written["images"]]
    return (written["prompt"], written["reference"]) == (row["problem"], row["answer"]) and (
        pictures == [image["bytes"] for image in row["images"]]
    )


MAKERS = {
    "orz57k": (ORZ57K, orz57k, is_of_orz57k),
    "mixture-of-thoughts": (MIXTURE_OF_THOUGHTS, lambda rng, path: parquet(rng, path, thoughts(rng)), is_of_thoughts),
    "geometry3k": (GEOMETRY3K, lambda rng, path: parquet(rng, path, geometry(rng)), is_of_geometry),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_corrupted_published_file_is_an_error_or_prepared_as_another_library_reads_it(tmp_path, name):
    layout, make, is_of = MAKERS[name]
    prepared = 0
    for number in range(FILES // len(MAKERS) + 1):
        rng = random.Random(f"{name}:{number}")
        (folder := tmp_path / str(number)).mkdir()
        path, out, skip = make(rng, folder / "published"), folder / "prepared.jsonl", number % 2 == 1
        try:
            result = run_prepare(layout, [path], out, skip_broken=skip, completions=True)
        except UsageError as error:
            assert str(path) in str(error)  # noqa: PT017 - most files are broken, and some are not
            assert len(str(error)) < 1000  # noqa: PT017
            assert not out.exists()
            continue
        prepared += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows = rows_of(path)
            except Unreadable:
                rows = []
        assert result.rows == len(rows), path
        left = iter(rows)
        for written in lines(out):
            assert any(matches(is_of, written, row, folder) for row in left), (path, written)
    assert prepared >= FILES // 20


def matches(is_of, written, row, folder) -> bool:
    """Whether the row, which may have any form, is that of `written`."""
    try:
        return is_of(written, row, folder)
    except (KeyError, TypeError, IndexError, ValueError):
        return False
