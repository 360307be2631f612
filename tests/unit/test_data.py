"""Examples from files, and the order in which a run takes them."""

import json

import pytest
from PIL import Image
from vold_trainer.config import DataConfig
from vold_trainer.data import PromptOrder, load_examples
from vold_trainer.errors import UsageError


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return DataConfig(source=str(path))


def test_prompts_messages_and_images(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    config = write(
        tmp_path / "rows.jsonl",
        {"prompt": "1+1?", "answer": 2},
        {"id": "x", "messages": [{"role": "user", "content": "hi"}], "reference": "y", "verifier": "exact"},
        {"prompt": "what?", "reference": "3", "image": "a.png"},
    )
    first, second, third = load_examples(config)
    assert (first.prompt_text, first.reference) == ("1+1?", "2")
    assert second.meta == {"verifier": "exact"}
    assert third.images[0].size == (28, 28)
    assert third.prompt_text == "[image]what?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "ans\n', r"rows\.jsonl:2: not JSON"),
        ("[1]\n", r"rows\.jsonl:2: a list, not an object"),
        ({"prompt": "a"}, r"rows\.jsonl:2: field 'reference' is None"),
        ({"prompt": 3, "reference": "1"}, r"rows\.jsonl:2: field 'prompt' is 3"),
        ({"messages": [{"role": "user"}], "reference": "1"}, r"rows\.jsonl:2: field 'messages\[0\]'"),
        ({"prompt": "a", "reference": "1", "image": "no.png"}, r"rows\.jsonl:2: image .*no\.png"),
    ],
)
def test_a_broken_line_is_named_and_skipped_only_on_request(tmp_path, line, message):
    config = write(tmp_path / "rows.jsonl", {"prompt": "fine", "reference": "1"}, line)
    with pytest.raises(UsageError, match=message):
        load_examples(config)
    assert len(load_examples(config.model_copy(update={"skip_broken": True}))) == 1


def test_sources_that_are_none():
    with pytest.raises(UsageError, match="neither 'pocket' nor a file"):
        load_examples(DataConfig(source="nowhere.jsonl"))


def test_an_offset_past_the_end_is_named(tmp_path):
    config = write(tmp_path / "rows.jsonl", {"prompt": "fine", "reference": "1"})
    with pytest.raises(UsageError, match=r"data\.offset 5"):
        load_examples(config.model_copy(update={"offset": 5}))


def test_every_pass_takes_every_prompt_once_in_a_new_order():
    order = PromptOrder(10, 4, seed=1)
    drawn = [index for step in range(5) for index in order.indices(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert PromptOrder(10, 4, seed=1).indices(3) == order.indices(3)
    assert PromptOrder(10, 4, seed=2).indices(0) != order.indices(0)
