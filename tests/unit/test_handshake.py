"""Tokenizers compared id by id."""

import pytest
import torch
from vold_trainer.errors import HandshakeError
from vold_trainer.handshake import compare, teacher_view, teacher_vocabulary

WORDS = {index: f"t{index}" for index in range(100)}


def test_the_same_vocabulary_is_all_known_and_padding_is_not():
    found = compare(WORDS, WORDS, min_shared=0.9, size=128)
    assert not found.differences
    assert found.known_V.sum() == 100
    assert len(found.known_V) == 128
    assert "all mean the same" in found.describe()


def test_a_larger_teacher_is_fine():
    found = compare(WORDS, WORDS | {100: "<think>", 101: "</think>"}, min_shared=0.9, size=100)
    assert not found.differences


def test_what_differs_is_listed_and_masked():
    teacher = WORDS | {7: "other"}
    del teacher[99]
    found = compare(WORDS, teacher, min_shared=0.9, size=100)
    assert [(d.id, d.student, d.teacher) for d in found.differences] == [(7, "t7", "other"), (99, "t99", None)]
    assert not found.known_V[7]
    assert not found.known_V[99]
    assert "7 (student 't7', teacher 'other')" in found.describe()


def test_two_families_are_refused_with_the_remedy():
    with pytest.raises(HandshakeError, match=r"only 0\.0% .*'t0' against 'u0'.*min_shared"):
        compare(WORDS, {index: f"u{index}" for index in range(100)}, min_shared=0.9, size=100)


def test_garbage_is_no_tokenizer():
    with pytest.raises(HandshakeError, match="cannot be read"):
        teacher_vocabulary(b"\x00 not json")
    with pytest.raises(HandshakeError, match="cannot be read"):
        teacher_vocabulary(b'{"model": 3}')


def test_a_completion_is_cut_where_the_teacher_cannot_follow():
    known = torch.tensor([True, False, True, True])
    assert teacher_view([0, 1, 2], known, 4) == ([0, 1, 2], [True, False, True])
    assert teacher_view([0, 3, 2], known, 3) == ([0], [True])
    assert teacher_view([3], known, 3) == ([], [])
