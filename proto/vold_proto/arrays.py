"""Arrays on the wire: packed, little-endian, without a header.

The shape follows from the message (see teacher.proto); the type is int32 for ids and the reply's DType for
floats. bfloat16 has no NumPy type: packing rounds to nearest even, and unpacking widens to float32.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vold_proto.v1 import teacher_pb2 as pb

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]


def pack_ids(ids: ArrayLike) -> bytes:
    """Integers of any shape as packed little-endian int32. Raises ValueError if a value does not fit."""
    array = np.asarray(ids)
    if array.size == 0:
        return b""
    if array.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers, not {array.dtype}: pass a list or an array of token ids")
    info = np.iinfo(np.int32)
    if array.min() < info.min or array.max() > info.max:
        raise ValueError(f"ids must fit in int32: found {int(array.min())} to {int(array.max())}")
    return array.astype("<i4", copy=False).tobytes()


def unpack_ids(data: bytes) -> Ids:
    """Packed int32 as a one-dimensional array. Raises ValueError if the length is not a multiple of 4."""
    if len(data) % 4:
        raise ValueError(f"packed ids must be 4 bytes each: got {len(data)} bytes")
    return np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False)


def pack_floats(values: ArrayLike, dtype: "pb.DType" = pb.F32) -> bytes:
    """Floats of any shape as packed `dtype`. Raises ValueError for an unknown dtype."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == pb.F32:
        return array.astype("<f4", copy=False).tobytes()
    if dtype == pb.F16:
        return array.astype("<f2").tobytes()
    if dtype == pb.BF16:
        bits = array.view(np.uint32)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        rounded = np.where(np.isnan(array), np.uint32(0x7FC0), rounded)
        return rounded.astype("<u2").tobytes()
    raise ValueError(f"dtype must be F32, F16 or BF16: got {dtype}")


def unpack_floats(data: bytes, dtype: "pb.DType" = pb.F32) -> Floats:
    """Packed floats as a one-dimensional float32 array. Raises ValueError if the length does not fit."""
    size = 4 if dtype == pb.F32 else 2
    if len(data) % size:
        raise ValueError(f"packed floats must be {size} bytes each: got {len(data)} bytes")
    if dtype == pb.F32:
        return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    if dtype == pb.F16:
        return np.frombuffer(data, dtype="<f2").astype(np.float32)
    if dtype == pb.BF16:
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"dtype must be F32, F16 or BF16: got {dtype}")
