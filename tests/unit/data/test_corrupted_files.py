"""A corrupted file is an error, or the rows that another library reads in the same bytes: never others, never fewer."""

import json
import logging
import math
import resource
import struct
import warnings

import numpy as np
import pytest
from corrupted_files import Unreadable, arrow_rows, corrupted_files, decode, json_lines, pixels
from vold_trainer.config import DataConfig
from vold_trainer.data.columns import Columns
from vold_trainer.data.files import file_rows
from vold_trainer.data.saved import saved_rows
from vold_trainer.data.traces import TraceRules, read_trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.sources import load_examples
from vold_trainer.verification.lines import LineParser

FILES = 500
MEMORY = 600 << 10
"""KiB by which the process may grow at most."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def same(ours, theirs) -> bool:
    """Whether two values are the same, up to the digits of a number of 32 bits."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float) and isinstance(ours, float) and not math.isfinite(theirs):
        return str(ours) == str(theirs)
    if isinstance(theirs, float) and isinstance(ours, float) and ours != theirs:
        return struct.pack("f", ours) == struct.pack("f", theirs)
    return type(ours) is type(theirs) and ours == theirs


def read(file):
    """(the values or errors of the rows before a file breaks off, the error with which it does)."""
    columns = Columns({}, {name: (name,) for name in ALL})
    made = []
    try:
        rows = saved_rows(file.path, "train", columns) if file.path.is_dir() else file_rows(file.path, columns)
        for row in rows:
            assert str(file.path) in row.where
            made.append(row.values)
    except UsageError as error:
        return made, error
    return made, None


ALL = ("id", "prompt", "reference", "completion", "tags", "parameters", "category", "image")


def check_lines(file):
    expected, (found, broken) = json_lines(file.path), read(file)
    if broken is not None:  # an encoding that breaks off
        with pytest.raises(UnicodeError):
            decode(file.path.read_bytes())
        return
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, UsageError) or same(ours, theirs)
        if isinstance(ours, UsageError) and isinstance(theirs, dict):
            assert "twice in an object" in str(ours) or "more than 100 levels" in str(ours)


def check_array(file):
    found, broken = read(file)
    try:
        expected = json.loads(decode(file.path.read_bytes()))
    except Unreadable:
        assert broken is not None or not found or any(isinstance(row, UsageError) for row in found)
        return
    if broken is None and isinstance(expected, list):
        assert len(found) == len(expected)
        assert all(isinstance(row, UsageError) or same(row, other) for row, other in zip(found, expected, strict=True))


def check_arrow(file):
    found, broken = read(file)
    try:
        expected = arrow_rows(file.path)
    except Unreadable:
        assert broken is not None or any(isinstance(row, UsageError) for row in found)
        return
    assert broken is not None or len(found) == len(expected)
    for row, other in zip(found, expected, strict=False):
        known = {name: value for name, value in other.items() if name in ALL} if set(other) & set(ALL) else other
        assert isinstance(row, UsageError) or same(row, known)


def check_picture(file):
    try:
        (row,) = load_examples(DataConfig(source=str(file.path), check_images="pixels"))
    except UsageError as error:
        assert "rows.jsonl:1: image" in str(error)  # noqa: PT017 - one or the other
        return
    expected = pixels(file.path.with_name("picture"))
    assert np.abs(np.asarray(row.images[0]).astype(float) - expected).max() <= 1


CHECKS = {
    "lines": check_lines,
    "array": check_array,
    "parquet": check_arrow,
    "saved": check_arrow,
    "picture": check_picture,
    "misnamed": lambda file: None,
}


def through_the_other_readers(file):
    """What prompts, traces and lines of a command are made by raises nothing but errors for the user."""
    for attempt in (
        lambda: load_examples(DataConfig(source=str(file.path), skip_broken=True)),
        lambda: load_examples(DataConfig(source=str(file.path))),
        lambda: read_trace_rows(file.path, list, TraceRules(), skip_broken=True) if file.path.is_file() else None,
    ):
        try:
            attempt()
        except UsageError as error:
            assert len(str(error)) < 1000  # noqa: PT017 - most files are broken, and some are not
    if file.path.suffix == ".jsonl":
        parser = LineParser("math", file=str(file.path))
        for number, line in enumerate(file.path.read_bytes().split(b"\n"), 1):
            parsed = parser.parse(line, number)
            assert (parsed.item is None) == bool(parsed.error)


@pytest.fixture
def quiet(caplog):
    """Skipped rows are many, and their warnings are no matter of these tests."""
    caplog.set_level(logging.ERROR, "vold.data")


def test_a_corrupted_file_is_an_error_or_what_another_library_reads(tmp_path, quiet):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about the files
        for file in corrupted_files(FILES, tmp_path):
            try:
                CHECKS[file.kind](file)
                through_the_other_readers(file)
            except Exception as error:
                raise AssertionError(f"{file}: {error!r}") from error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
