"""Text out of tokens that come one by one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_fixtures import save_tokenizer
from vold_teacher.detokenizer import Detokenizer, StopTexts
from vold_teacher.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    save_tokenizer(folder)
    return Tokenizer(folder)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 260), max_size=30))
def test_the_pieces_of_any_ids_are_their_text(tokenizer, ids):
    for special in (False, True):
        detokenizer = Detokenizer(tokenizer, special=special)
        pieces = [detokenizer.push(index) for index in ids]
        assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, special=special)


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_the_pieces_of_a_text_are_whole_characters(tokenizer, text):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(index) for index in tokenizer.encode(text, special=False).tolist()]
    if "\ufffd" not in text:
        assert all(len(piece) <= 1 for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_the_stop_that_is_complete_first(pieces, stops):
    given_out, ended, count, reader = "", None, 0, StopTexts(stops)
    while ended is None and count < len(pieces):
        certain, ended = reader.push(pieces[count])
        given_out += certain
        count += 1
    if ended is None:
        given_out += reader.flush()
    text = "".join(pieces[:count])
    assert not any(stop in "".join(pieces[: count - 1]) for stop in stops)
    places = [text.index(stop) for stop in stops if stop in text]
    assert given_out == (text[: min(places)] if places else text)
    assert (ended is None) == (not places)
    if ended is not None:
        assert text.startswith(ended, len(given_out))
