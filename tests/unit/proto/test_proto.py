"""The wire contract: stubs that match their sources, and packed arrays that unpack to the same values."""

import runpy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paths import ROOT
from vold_proto.arrays import pack_floats, pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb

PROTO = ROOT / "proto"


def test_stubs_match_their_sources(tmp_path):
    runpy.run_path(str(PROTO / "generate.py"))["generate"](tmp_path)
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*"))
    committed = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*_pb2*") if "__pycache__" not in path.parts)
    assert generated == committed
    for path in generated:
        assert (tmp_path / path).read_text() == (PROTO / path).read_text(), f"run proto/generate.py: {path} is stale"


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_ids_unpack_to_the_same_values(ids):
    assert unpack_ids(pack_ids(ids)).tolist() == ids
    assert len(pack_ids(ids)) == 4 * len(ids)


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_floats_unpack_rounded_to_their_dtype(values):
    assert np.array_equal(unpack_floats(pack_floats(values)), values, equal_nan=True)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(unpack_floats(pack_floats(values, pb.F16), pb.F16), half, equal_nan=True)
    rounded = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    assert np.array_equal(unpack_floats(pack_floats(values, pb.BF16), pb.BF16), rounded, equal_nan=True)


def test_values_and_lengths_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="int32"):
        pack_ids([2**31])
    with pytest.raises(ValueError, match="integers"):
        pack_ids([0.5])
    with pytest.raises(ValueError, match="4 bytes"):
        unpack_ids(b"123")
    with pytest.raises(ValueError, match="2 bytes"):
        unpack_floats(b"123", pb.F16)
