"""Completions in the teacher's ids, where one side has a token that the other spells."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from vold_client import CompletionScore
from vold_trainer.data import Example
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.handshake import compare_vocabularies, truncate_for_teacher, vocabulary
from vold_trainer.scoring.scores import RolloutScore, store_score
from vold_trainer.scoring.teacher_view import Translation

MERGED = ["th", "ink", "<th", "</", ".</", ">\n", ">\n\n", "><", " <", "\n\n", "so", "<"]
PIECES = list(dict.fromkeys([*"abcdehiknostu<>/.| \n", *MERGED]))
THOUGHT = ["<think>", "</think>"]
CONTROL = "<|im_end|>"


def tokenizer(*added, special=(CONTROL,)):
    """A tokenizer of PIECES and added tokens, as a byte-level one would have them."""
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(PIECES)}, []))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.add_tokens([AddedToken(token, special=token in special, normalized=False) for token in added])
    return made


def translation(student, teacher, size=None):
    own = vocabulary(student)
    handshake = compare_vocabularies(own, vocabulary(teacher), min_shared=0.5, size=max(own) + 8)
    return Translation(student, teacher, handshake.shared_V, size or max(vocabulary(teacher)) + 1)


SPELLING, KNOWING = tokenizer(CONTROL), tokenizer(CONTROL, *THOUGHT)
OPEN, CLOSE = (KNOWING.token_to_id(mark) for mark in THOUGHT)


def ids(*pieces):
    return [KNOWING.token_to_id(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("pieces", "sent", "positions"),
    [
        (["<th", "ink", ">\n", "so"], [OPEN, *ids("\n", "so")], [-1, -1, -1, 2]),
        (["so", ".</", "th", "ink", ">\n\n"], [*ids("so", "."), CLOSE, *ids("\n\n")], [0, -1, -1, -1, -1]),
        (["</", "th", "ink", "><", "th", "ink", ">", "so"], [CLOSE, OPEN, *ids("so")], [*[-1] * 7, 2]),
        ([*"a<think>b"], [*ids("a"), OPEN, *ids("b")], [0, *[-1] * 7, 2]),
        (["a", " <", "th", "ink", ">", CONTROL], [*ids("a", " "), OPEN, *ids(CONTROL)], [0, -1, -1, -1, -1, 3]),
        (["<th", "ink", "so"], ids("<th", "ink", "so"), [0, 1, 2]),
    ],
    ids=["line-end", "both-neighbours", "shared-piece", "letters", "space", "no-mark"],
)  # fmt: skip
def test_a_spelled_token_is_the_teachers_own_for_the_teacher(pieces, sent, positions):
    view = translation(SPELLING, KNOWING)(ids(*pieces))
    assert view.ids == sent
    assert view.position_T.tolist() == positions
    assert view.shared_T.tolist() == [position >= 0 for position in positions]


@settings(max_examples=50)
@given(st.lists(st.sampled_from([*PIECES, CONTROL, *THOUGHT]), max_size=30))
def test_a_view_has_the_same_text_and_the_same_tokens_beside_the_marks(pieces):
    completion = [token for piece in pieces for token in (ids(piece) if piece not in THOUGHT else ids(*piece))]
    view = translation(SPELLING, KNOWING)(completion)
    text = "".join(KNOWING.id_to_token(token) for token in completion)
    assert "".join(KNOWING.id_to_token(token) for token in view.ids) == text
    assert view.ids.count(OPEN) == text.count("<think>")
    assert view.ids.count(CLOSE) == text.count("</think>")
    kept = view.position_T[view.position_T >= 0]
    assert (np.diff(kept) > 0).all()
    assert [view.ids[place] for place in kept] == [completion[t] for t in np.flatnonzero(view.position_T >= 0)]
    if not set(view.ids) & {OPEN, CLOSE}:
        assert view.ids == completion


@settings(max_examples=50)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 40))
def test_without_a_spelled_token_it_is_the_completion_cut_and_masked(completion, size):
    shared_V = torch.arange(64) % 3 != 0
    view = Translation(SPELLING, SPELLING, shared_V, size)(completion)
    sent, mask = truncate_for_teacher(completion, shared_V, size)
    assert view.ids == sent
    assert view.shared_T.tolist() == mask + [False] * (len(completion) - len(sent))
    assert view.position_T.tolist() == [*range(len(sent)), *[-1] * (len(completion) - len(sent))]


def test_a_completion_is_cut_after_a_mark_as_well():
    translate = translation(SPELLING, KNOWING)
    view = translate([*ids("so", "<th", "ink", ">"), 90, *ids("so")])
    assert view.ids == [*ids("so"), OPEN]
    assert view.position_T.tolist() == [0, -1, -1, -1, -1, -1]


def test_a_token_that_the_teacher_spells_is_pieces_for_the_teacher():
    translate = translation(KNOWING, SPELLING)
    view = translate([*ids("so"), CLOSE, *ids("so")])
    assert view.ids == ids("so", *"</think>", "so")
    assert view.position_T.tolist() == [0, -1, 9]
    assert view.shared_T.tolist() == [True, False, True]
    assert "the teacher spells '<think>', '</think>'" in translate.describe()


def test_control_tokens_that_a_completion_spells_stay_text():
    control = "<|user|>"
    translate = translation(SPELLING, tokenizer(CONTROL, control, special=(CONTROL, control)))
    assert not translate.teacher_only
    assert not translate.describe()
    spelled = ids(*"<|us", "so")
    assert translate(spelled).ids == spelled


def test_a_mark_that_the_student_cannot_spell_is_none():
    translate = translation(SPELLING, tokenizer(CONTROL, "<thünk>"))
    assert not translate.teacher_only


def test_the_line_of_the_handshake_says_what_is_done():
    said = translation(SPELLING, KNOWING).describe()
    assert said.startswith("the student spells '<think>', '</think>', which the teacher has as tokens: it gets these")
    assert "student.add_tokens=teacher" in said
    assert not translation(KNOWING, KNOWING).describe()


def test_values_come_back_at_the_students_positions():
    completion = ids("a", "<th", "ink", ">", "b")
    view = translation(SPELLING, KNOWING)(completion)  # a <think> b
    candidates = np.arange(10).reshape(5, 2)
    assert view.of_teacher(candidates).tolist() == [[0, 1], [0, 0], [8, 9]]
    rollout = Rollout(0, Example("x", (), ""), (1,), tuple(completion), "", False)
    top = np.array([[1, 2], [3, 4], [5, OPEN]], np.int32)
    score = CompletionScore(
        "0",
        logprobs=np.array([-1.0, -20.0, -3.0], np.float32),
        entropy=np.array([0.1, 0.2, 0.3], np.float32),
        top_ids=top,
        top_logprobs=np.array([[-1, -2]] * 3, np.float32),
    )
    target, support_V = RolloutScore(), np.ones(64, bool)
    support_V[OPEN] = False
    store_score(target, rollout, score, view, support_V)
    nan = np.nan
    np.testing.assert_array_equal(target.teacher_logprobs, np.array([-1, nan, nan, nan, -3], np.float32))
    np.testing.assert_allclose(target.entropy, [0.1, nan, nan, nan, 0.3])
    assert target.support_ids.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [5, 0]]
    np.testing.assert_array_equal(target.support_logprobs, [[-1, -2], [nan, nan], [nan, nan], [nan, nan], [-1, nan]])
    assert target.invalid == 0
