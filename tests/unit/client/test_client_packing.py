"""Packing and unpacking of arrays, splitting of large requests, and framing."""

from io import BytesIO

import numpy as np
import pytest
from google.protobuf.proto import serialize_length_prefixed
from hypothesis import given
from hypothesis import strategies as st
from vold_client.errors import InvalidArgument, copy_error
from vold_client.framing import FrameDecoder
from vold_client.packing import Budget, pack_candidates, restore_indices, split_request, unpack_score
from vold_client.types import Completion, ScoreRequest
from vold_proto.arrays import pack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb

TOKENS = st.integers(0, 2**31 - 1)
IDS = st.lists(TOKENS, max_size=6)


@st.composite
def completions(draw, prompts: int):
    ids = draw(st.lists(TOKENS, min_size=1, max_size=6))
    kind = draw(st.sampled_from(["none", "fixed", "ragged"]))
    candidates = None
    if kind == "fixed":
        width = draw(st.integers(0, 3))
        candidates = np.array(draw(st.lists(TOKENS, min_size=len(ids) * width, max_size=len(ids) * width)), np.int64)
        candidates = candidates.reshape(len(ids), width)
    elif kind == "ragged":
        candidates = draw(st.lists(IDS, min_size=len(ids), max_size=len(ids)))
    return Completion(draw(st.integers(0, prompts - 1)), ids, candidates, draw(st.sampled_from(["", "name"])))


@st.composite
def requests(draw):
    prompts = draw(st.lists(IDS, min_size=1, max_size=4))
    return ScoreRequest(prompts, draw(st.lists(completions(len(prompts)), max_size=12)), top_k=draw(st.integers(0, 2)))


@given(requests(), st.builds(Budget, bytes=st.integers(1, 400), completions=st.integers(1, 5)))
def test_parts_hold_the_whole_request_within_the_budget(request_, budget):
    parts = list(split_request(request_, "r", "", "run", budget))
    assert sorted(index for part in parts for index in part.completions) == list(range(len(request_.completions)))
    for part in parts:
        message = part.message
        assert len(message.completions) <= budget.completions
        assert message.ByteSize() <= budget.bytes + 200 or len(message.completions) == 1
        assert len(part.prompts) == len(set(part.prompts)) == len(message.prompts)
        for packed, index in zip(message.completions, part.completions, strict=True):
            completion = request_.completions[index]
            assert packed.id == (completion.id or str(index))
            assert unpack_ids(packed.ids).tolist() == list(completion.ids)
            assert unpack_ids(message.prompts[packed.prompt].ids).tolist() == list(request_.prompts[completion.prompt])
    assert len({part.message.request_id for part in parts}) == len(parts)


@given(requests(), st.sampled_from([pb.F32, pb.F16, pb.BF16]))
def test_candidate_logprobs_have_the_shape_of_the_candidates(request_, dtype):
    for part in split_request(request_, "r", "", "", Budget()):
        for packed, index in zip(part.message.completions, part.completions, strict=True):
            completion = request_.completions[index]
            positions = len(completion.ids)
            total = len(unpack_ids(packed.candidates.ids))
            score = pb.CompletionScore(
                logprobs=pack_floats(-np.arange(positions), dtype),
                candidate_logprobs=pack_floats(-np.arange(total), dtype),
            )
            unpacked = unpack_score(score, completion, "x", pb.ScoreReply(dtype=dtype), "")
            assert unpacked.error is None
            assert unpacked.logprobs.tolist() == [-n for n in range(positions)]
            values = unpacked.candidate_logprobs
            if completion.candidates is None:
                assert values is None
            elif isinstance(completion.candidates, list):
                assert [len(part) for part in values] == [len(part) for part in completion.candidates]
                assert np.concatenate(values).tolist() == [-n for n in range(total)]
            else:
                assert values.shape == completion.candidates.shape
                assert values.reshape(-1).tolist() == [-n for n in range(total)]


def test_fixed_and_ragged_candidates_on_the_wire():
    fixed = pack_candidates(np.array([[1, 2], [3, 4]]), 2, "c")
    assert (fixed.per_position, fixed.counts, unpack_ids(fixed.ids).tolist()) == (2, b"", [1, 2, 3, 4])
    ragged = pack_candidates([[1], [], np.array([2, 3])], 3, "c")
    assert ragged.per_position == 0
    assert unpack_ids(ragged.counts).tolist() == [1, 0, 2]
    assert unpack_ids(ragged.ids).tolist() == [1, 2, 3]
    assert pack_candidates([[], []], 2, "c") is None


def test_a_reply_of_the_wrong_size_is_an_error_of_its_completion():
    score = pb.CompletionScore(logprobs=pack_floats([1.0, 2.0]))
    unpacked = unpack_score(score, Completion(0, [1, 2, 3]), "x", pb.ScoreReply(), "grpc://a:1")
    assert unpacked.logprobs is None
    assert unpacked.error.code == "INTERNAL"
    assert "3 ids" in unpacked.error.message


def test_an_error_of_a_part_has_the_callers_indices():
    request = ScoreRequest([[1], [2]], [Completion(1, [1]), Completion(0, [1]), Completion(1, [1])])
    second = list(split_request(request, "r", "", "", Budget(completions=1)))[1]
    error = InvalidArgument("completions[0].ids: too long after prompts[0]", field="completions[0].ids")
    restored = restore_indices(error, second)
    assert restored.field == "completions[0].ids"
    assert restored.message == "completions[0].ids: too long after prompts[1]"
    third = list(split_request(request, "r", "", "", Budget(completions=1)))[2]
    assert restore_indices(error, third).field == "completions[2].ids"


def test_copy_error_returns_an_equal_new_object():
    error = InvalidArgument("m", field="f", retry_seconds=1.0, url="u", reason="invalid")
    copy = copy_error(error)
    assert copy is not error
    assert type(copy) is InvalidArgument
    assert (copy.message, copy.field, copy.retry_seconds, copy.url, copy.reason) == ("m", "f", 1.0, "u", "invalid")


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_frames_of_a_body_in_chunks_of_any_size(bodies, size):
    buffer = BytesIO()
    for body in bodies:
        serialize_length_prefixed(pb.TokenizerReply(tokenizer_json=body), buffer)
    data, decoder, decoded = buffer.getvalue(), FrameDecoder(), []
    for start in range(0, len(data), size):
        decoded += [
            pb.TokenizerReply.FromString(message).tokenizer_json for message in decoder.feed(data[start : start + size])
        ]
    assert decoded == bodies
    assert not decoder.incomplete


def test_a_malformed_and_an_incomplete_frame():
    with pytest.raises(ValueError, match="lengths"):
        list(FrameDecoder().feed(b"\xff" * 6))
    decoder = FrameDecoder()
    assert list(decoder.feed(b"\x05ab")) == []
    assert decoder.incomplete
