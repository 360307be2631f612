"""Examples on disk are the examples that went there."""

import gc
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vold_trainer.config import DataConfig
from vold_trainer.data import Example
from vold_trainer.data.spool import SpooledExamples
from vold_trainer.sources import each_example, load_examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT, st.lists, max_leaves=4
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3).map(tuple)
EXAMPLES = st.builds(
    Example,
    id=TEXT,
    messages=MESSAGES,
    reference=TEXT,
    category=TEXT,
    meta=st.dictionaries(TEXT | st.integers(), JSON | st.tuples(TEXT), max_size=3),
    twin=st.none() | MESSAGES,
    where=TEXT,
)


@settings(max_examples=30)
@given(st.lists(EXAMPLES, max_size=5))
def test_every_example_comes_back_as_it_was(examples):
    spooled = SpooledExamples(examples, Path("/tmp"))
    assert len(spooled) == len(examples)
    assert list(spooled) == spooled[:] == examples
    assert [each.where for each in spooled] == [each.where for each in examples]
    assert spooled[1:4:2] == examples[1:4:2]
    if examples:
        assert spooled[-1] == examples[-1]
    with pytest.raises(IndexError):
        spooled[len(examples)]
    spooled.close()


def test_an_example_with_images_stays_in_memory(tmp_path):
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    image = Example("a", ({"role": "user", "content": parts},), "", images=(Image.new("RGB", (2, 2)),))
    spooled = SpooledExamples([image, Example("b", ({"role": "user", "content": "?"},), "1")], tmp_path)
    assert spooled[0] is image
    assert spooled[1] is not spooled[1]
    assert not list(tmp_path.iterdir())  # the file has no name


def test_rows_on_disk_take_no_memory(tmp_path):
    """The slope: what a thousand rows more cost."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} " * 300, "reference": str(n)}) + "\n" for n in range(300)))

    def peak(limit: int) -> int:
        gc.collect()
        tracemalloc.start()
        SpooledExamples(each_example(DataConfig(source=str(rows), limit=limit)), tmp_path).close()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(300) - peak(100) < 20_000  # as a list they take 300 kB
    assert list(SpooledExamples(each_example(DataConfig(source=str(rows))), tmp_path)) == load_examples(
        DataConfig(source=str(rows))
    )
