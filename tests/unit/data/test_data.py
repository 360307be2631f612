"""Examples from files, their images and twins, and the order in which a run takes them."""

import base64
import io
import json

import pytest
from PIL import Image
from vold_trainer.config import DataConfig
from vold_trainer.data import PromptOrder
from vold_trainer.errors import UsageError
from vold_trainer.sources import load_examples


def write(path, *lines, **options):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return DataConfig(source=str(path), **options)


def image_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


RED = Image.new("RGB", (28, 28), "red")


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
        ({"prompt": "a"}, r"rows\.jsonl:2: field 'reference' is None.*data\.columns\.reference \(the row has prompt\)"),
        ({"prompt": 3, "reference": "1"}, r"rows\.jsonl:2: field 'prompt' is 3"),
        ({"question": "a", "reference": "1"}, r"field 'prompt' is None.*\(the row has question, reference\)"),
        ({"prompt": [{"role": "user"}], "reference": "1"}, r"these are messages: set data\.columns\.messages"),
        ({"messages": [{"role": "user"}], "reference": "1"}, r"rows\.jsonl:2: field 'messages\[0\]'"),
        ({"messages": "hello", "reference": "1"}, r"field 'messages' is text, and not JSON"),
        ({"messages": [{"role": "user", "content": 3}], "reference": "1"}, r"field 'messages\[0\]\.content' is 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}], "reference": "1"},
            r"field 'messages\[0\]\.content\[0\]' is .*give a part of type text",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "reference": "1"},
            r"field 'messages' ends with an assistant's turn",
        ),
        (
            {"messages": [{"role": "system", "content": "a"}], "system": "b", "reference": "1"},
            r"field 'system' is 'b': the messages have a system prompt of their own",
        ),
        ({"prompt": "a", "reference": "1", "image": "no.png"}, r"rows\.jsonl:2: image .*no\.png"),
        ({"prompt": "a", "reference": "1", "image": 3}, r"field 'images': image 0 is 3: give the path"),
        ({"prompt": "a", "reference": "1", "image": "https://a/b.png"}, r"nothing is fetched in a run: download it"),
        ({"prompt": "a", "reference": "1", "image": "data:image/png,x"}, r"a data: URL has to be base64"),
        ({"prompt": "a", "reference": "1", "image": data_url(b"no picture")}, r"rows\.jsonl:2: image cannot be read"),
        (
            {"prompt": "<image>a<image>", "reference": "1", "image": data_url(image_bytes(RED))},
            r"2 image places.*has 1",
        ),
        ({"prompt": "a", "reference": "1", "tags": "sum"}, r"field 'tags' is 'sum': give a list of words"),
        ({"prompt": "a", "reference": "1", "parameters": "{"}, r"field 'parameters' is '{': not JSON"),
        ({"prompt": "a", "reference": "1", "parameters": [1]}, r"field 'parameters' is \[1\]: give an object"),
        ({"prompt": "a", "reference": "1", "verifier": 3}, r"field 'verifier' is 3: give a name"),
        ({"prompt": "a", "reference": "1", "twin": 3}, r"field 'twin' is 3: give text"),
        ({"prompt": "a", "reference": "1", "twin": ""}, r"field 'twin' is '': give the question in words"),
        (
            {"prompt": "a", "reference": "1", "twin": "b", "twin_messages": [{"role": "user", "content": "c"}]},
            r"field 'twin' is 'b': there is 'twin_messages' too",
        ),
        (
            {"prompt": "a", "reference": "1", "twin_messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"rows\.jsonl:2: field 'twin_messages' has an image: a teacher reads text only",
        ),
    ],
)
def test_a_broken_line_is_named_and_skipped_only_on_request(tmp_path, line, message):
    config = write(tmp_path / "rows.jsonl", {"prompt": "fine", "reference": "1"}, line)
    with pytest.raises(UsageError, match=message) as caught:
        load_examples(config)
    assert "data.skip_broken=true" in str(caught.value)
    assert len(load_examples(config.model_copy(update={"skip_broken": True}))) == 1


def test_sources_that_are_none(tmp_path):
    for source in ("nowhere.jsonl", "nowhere.parquet", "./nowhere", "a/b/c", str(tmp_path / "*.jsonl")):
        with pytest.raises(UsageError, match="neither 'pocket' nor a file"):
            load_examples(DataConfig(source=source))
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match=r"rows\.csv' is neither JSONL \(\.jsonl.*nor Parquet"):
        load_examples(DataConfig(source=str(tmp_path / "rows.csv")))
    with pytest.raises(ValueError, match="split is 'dev': the pocket world has train, validation, test"):
        DataConfig(split="dev")


def test_an_offset_past_the_end_is_named(tmp_path):
    config = write(tmp_path / "rows.jsonl", {"prompt": "fine", "reference": "1"})
    with pytest.raises(UsageError, match=r"has 1 rows, and data\.offset skips 5: lower it"):
        load_examples(config.model_copy(update={"offset": 5}))


def test_system_prompts_and_twins(tmp_path):
    turns = [{"role": "system", "content": "own"}, {"role": "user", "content": "c"}]
    image = {"image": data_url(image_bytes(RED))}
    config = write(
        tmp_path / "rows.jsonl",
        {"prompt": "a", "reference": "1"},
        {"prompt": "a", "reference": "1", "system": "row's"},
        {"messages": turns, "reference": "1", "twin": "in words"},
        {"prompt": "a", "reference": "1", "twin": "in words", **image},
        {"prompt": "a", "reference": "1", "twin_messages": turns, **image},
        {"prompt": "a", "reference": "1", "twin_messages": turns[1:], **image},
        system="all's",
    )
    loaded = load_examples(config)
    assert [example.messages[0]["content"] for example in loaded] == [
        "all's",
        "row's",
        "own",
        "all's",
        "all's",
        "all's",
    ]
    assert [example.twin and [message["content"] for message in example.twin] for example in loaded] == [
        None,
        None,
        ["own", "in words"],
        ["all's", "in words"],
        ["own", "c"],
        ["all's", "c"],
    ]
    assert [message["role"] for message in loaded[3].messages] == ["system", "user"]
    assert loaded[3].prompt_text == "[image]a"


def test_messages_may_bring_their_images_along_in_any_common_way(tmp_path):
    RED.save(tmp_path / "red.png")
    data = image_bytes(RED)
    parts = [
        {"type": "image", "image": "red.png"},
        {"type": "image", "path": str(tmp_path / "red.png")},
        {"type": "image", "url": f"file://{tmp_path / 'red.png'}"},
        {"type": "image", "base64": base64.b64encode(data).decode()},
        {"type": "image_url", "image_url": {"url": data_url(data)}},
    ]
    content = [*parts, {"type": "text", "text": "What colour?"}]
    (example,) = load_examples(
        write(tmp_path / "rows.jsonl", {"messages": [{"role": "user", "content": content}], "reference": "red"})
    )
    assert list(example.images) == [RED] * 5
    assert example.messages[0]["content"] == [{"type": "image"}] * 5 + [{"type": "text", "text": "What colour?"}]
    doubled = {"messages": [{"role": "user", "content": content}], "reference": "red", "images": ["red.png"]}
    with pytest.raises(UsageError, match="the messages bring their images along: keep one of the two"):
        load_examples(write(tmp_path / "rows.jsonl", doubled))


def test_a_token_in_the_text_says_where_the_images_stand(tmp_path):
    image = {"images": [data_url(image_bytes(RED))] * 2, "reference": "1"}
    rows = (
        {"prompt": "Is <image> like <image>?", **image},
        {"messages": [{"role": "user", "content": "Is <image> like <image>?"}], **image},
        {"prompt": "Is it like <image>?", "reference": "1"},
    )
    loaded = load_examples(write(tmp_path / "rows.jsonl", *rows))
    assert [example.prompt_text for example in loaded] == ["Is [image] like [image]?"] * 2 + ["Is it like <image>?"]
    off = load_examples(write(tmp_path / "rows.jsonl", rows[0], image_token=""))
    assert off[0].prompt_text == "[image][image]Is <image> like <image>?"


def test_several_columns_of_images_and_an_image_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    RED.save(tmp_path / "pictures" / "red.png")
    row = {"prompt": "a", "reference": "1", "image_1": "red.png", "image_2": None, "image_3": "red.png"}
    config = write(
        tmp_path / "rows.jsonl",
        row,
        columns={"images": ["image_1", "image_2", "image_3"]},
        image_folder=tmp_path / "pictures",
    )
    assert len(load_examples(config)[0].images) == 2


def test_a_mapped_column_goes_before_one_that_is_called_like_a_field(tmp_path):
    row = {"messages": "the source's own", "question": "a", "reference": "1", "tags": 3, "a.b": "x", "c": {"d": ["y"]}}
    mapping = {"prompt": "question", "tags": None, "category": "a.b", "verifier": "c.d.0"}
    (example,) = load_examples(write(tmp_path / "rows.jsonl", row, columns=mapping))
    assert (example.prompt_text, example.category, example.meta) == ("a", "x", {"verifier": "y"})


def test_images_are_decoded_on_access_upright_and_on_white(tmp_path):
    turned = Image.new("RGB", (4, 2), "blue")
    turned.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    config = write(tmp_path / "rows.jsonl", {"prompt": "a", "reference": "1", "images": ["turned.png", "glass.png"]})
    (example,) = load_examples(config)
    assert example.pixels == 12
    assert all(image._decoded is None for image in example.images.lazy_images)
    first, second = example.images
    assert (first.size, first.getpixel((1, 0))) == ((2, 4), (255, 0, 0))
    assert (second.mode, second.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert example.images[0] is first, "the same object while a reference to it exists"
    assert example.images[:1] == [first]


def test_an_image_that_breaks_off_is_found_on_request_and_named_in_any_case(tmp_path):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    (tmp_path / "half.jpg").write_bytes(image_bytes(noise, "JPEG")[:-400])
    config = write(
        tmp_path / "rows.jsonl",
        {"prompt": "a", "reference": "1"},
        {"prompt": "a", "reference": "1", "image": "half.jpg"},
    )
    loaded = load_examples(config)
    with pytest.raises(UsageError, match=r"rows\.jsonl:2: image .*half\.jpg' cannot be read: image file is truncated"):
        loaded[1].images[0]
    whole = config.model_copy(update={"check_images": "pixels"})
    with pytest.raises(UsageError, match=r"rows\.jsonl:2: image .*half\.jpg.*skip_broken"):
        load_examples(whole)
    assert len(load_examples(whole.model_copy(update={"skip_broken": True}))) == 1


def test_half_of_a_character_is_found_before_a_service_refuses_it(tmp_path):
    config = write(tmp_path / "rows.jsonl", {"prompt": "a", "reference": "1"}, {"prompt": "a", "reference": "\ud83d"})
    with pytest.raises(UsageError, match=r"rows\.jsonl:2: its text holds '\\ud83d', which is half of a character"):
        load_examples(config)
    (example,) = load_examples(config.model_copy(update={"skip_broken": True}))
    assert example.where == f"{tmp_path / 'rows.jsonl'}:1"


def test_every_epoch_takes_every_prompt_once_in_a_new_order():
    order = PromptOrder(10, 4, seed=1)
    indices = [index for step in range(5) for index in order.indices(step)]
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10] != indices[10:]
    assert PromptOrder(10, 4, seed=1).indices(3) == order.indices(3)
    assert PromptOrder(10, 4, seed=2).indices(0) != order.indices(0)
