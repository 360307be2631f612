"""Messages of callers as ids: no text becomes a control token, and a text without any has the tokenizer's own ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_fixtures import SPECIAL, save_tokenizer
from vold_packing.marks import COUNT, FIRST
from vold_service.errors import ServiceError
from vold_teacher.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<user>{{ m.role }}: {{ m.content }}<eos>{% endfor %}{{ style | tojson }}{{ 1 // parts }}"
    "<assistant>"
)
TEXTS = st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=5)), max_size=6).map("".join)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    own = save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    own.chat_template = TEMPLATE
    return own, Tokenizer(folder)


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), style=TEXTS)
def test_no_text_of_a_caller_becomes_a_control_token(turns, style, saved):
    own, tokenizer = saved
    variables = {"style": {style: [style]}, "parts": 1}
    ids = tokenizer.render(turns, "messages", variables).tolist()
    frame = tokenizer.render([("user", "")] * len(turns), "messages", {"style": "", "parts": 1}).tolist()
    control = set(range(len(SPECIAL)))
    assert [token for token in ids if token in control] == [token for token in frame if token in control]
    conversation = [{"role": role, "content": content} for role, content in turns]
    text = own.apply_chat_template(conversation, tokenize=False, **variables)
    assert own.decode(ids) == text
    if not any(mark in each for mark in SPECIAL for turn in (*turns, (style,)) for each in turn):
        assert ids == own(text, add_special_tokens=False)["input_ids"]


def test_what_a_template_cannot_do_is_an_error_of_the_caller(saved):
    with pytest.raises(ServiceError, match=r"messages: the chat template refused them: .*zero"):
        saved[1].render([("user", "a")], "messages", {"style": "", "parts": 0})
    many = "".join(chr(FIRST + number) for number in range(COUNT)) + "<eos>"
    with pytest.raises(ServiceError, match="messages: its texts spell more than 64 different control tokens"):
        saved[1].render([("user", many)], "messages", {"style": "", "parts": 1})
