"""Marks of a tokenizer in texts: which are tokens where, and what stands in for them in a template."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from vold_packing.marks import COUNT, FIRST, Marks, TooManyMarksError


def tokenizer(*added):
    base = Tokenizer(models.BPE(vocab={chr(c): c for c in range(32, 127)} | {"\n": 0}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    for text, special in added:
        base.add_tokens([AddedToken(text, special=special, normalized=False)])
    return base


def test_thoughts_and_tools_are_tokens_in_completions_alone():
    marks = Marks(tokenizer(("<|end|>", True), ("<think>", False), ("</think>", False), ("<td>", False), ("  ", False)))
    assert (marks.control, marks.others) == ({"<|end|>"}, {"<think>", "</think>"})
    think = marks._tokenizer.token_to_id("<think>")
    assert think in marks.completion_ids("<think>a<|end|>")
    assert marks._tokenizer.token_to_id("<|end|>") not in marks.completion_ids("<think>a<|end|>")
    for role, live in (("user", False), ("system", False), ("assistant", True)):
        shielded, found = marks.shield([{"role": role, "content": "<think>a"}])
        assert found == ([] if live else ["<think>"])
        assert (shielded[0]["content"] == "<think>a") == live


def test_more_marks_than_stand_ins_are_refused():
    many = [f"<|{number}|>" for number in range(COUNT + 1)]
    marks = Marks(tokenizer(*((mark, True) for mark in many)))
    assert len(marks.shield([{"role": "user", "content": "".join(many[1:])}])[1]) == COUNT
    with pytest.raises(TooManyMarksError, match="its texts spell more than 64 different control tokens"):
        marks.shield([{"role": "user", "content": "".join(many)}])


LETTERS = "<|a>b?*[ "


@given(st.sets(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=12), st.text(LETTERS, max_size=40))
def test_the_longest_mark_at_the_first_place_is_found(contents, text):
    marks = Marks(tokenizer(*((content, True) for content in contents)))
    text += chr(FIRST)
    longest_first = sorted(marks.control, key=len, reverse=True)
    plain = re.compile("|".join([*map(re.escape, longest_first), f"[{chr(FIRST)}-{chr(FIRST + COUNT - 1)}]"]))
    _, found = marks.shield([{"role": "user", "content": text}])
    assert found == list(dict.fromkeys(plain.findall(text)))
    assert marks.spelled_in(text)
    assert marks.spelled_in(text[:-1]) == bool(plain.search(text[:-1]))


def test_a_name_is_a_name_and_every_other_text_is_shielded():
    marks = Marks(tokenizer(("<|end|>", True), ("user", True)))
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a<|end|>"}]},
        {"role": "a<|end|>", "content": "b"},
    ]
    variables = {"style": "<|end|>", "tools": [{"type": "<|end|>", "<|end|>": 1}], "deep": True}
    shielded, others, found = marks.shield_all(messages, variables)
    end = chr(FIRST)
    assert found == ["<|end|>"]
    assert list(shielded) == [
        {"role": "user", "content": [{"type": "text", "text": f"a{end}"}]},
        {"role": f"a{end}", "content": "b"},
    ]
    assert others == {"style": end, "tools": [{"type": end, end: 1}], "deep": True}
