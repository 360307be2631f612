"""Attention over packed segments in one call of a kernel for sequences of different lengths.

`packed` computes each segment by itself, which suits CPUs. A GPU would wait for the many small calls, and a mask would
send it to a slower kernel. Kernels for sequences of different lengths take offsets in place of a mask. A completion of
a shared prompt attends to a copy of the prompt's keys and values before its own; the copies are of one layer, and as
long as that layer computes.

In every sequence of a call the last query attends to all keys, the one before it to all but the last, and so on.

Shape letters: S packed queries, T keys with the copies, N sequences, H heads, K key-value heads, D head size.
"""

import inspect
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HALF = (torch.bfloat16, torch.float16)


class Span(Protocol):
    """Queries [start, end) of the packed row, and the keys of their prompt, which come before their own."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def prompt_start(self) -> int: ...
    @property
    def prompt_end(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Offsets:
    """Where the sequences of a call begin. queries_N1, keys_N1: int32 [N + 1], the first 0, the last S and T. longest:
    the most queries, and the most keys, of a sequence. keys_T: int64 [T], the position in the packed row of each key;
    None if the keys are those of the row.
    """

    queries_N1: Tensor
    keys_N1: Tensor
    longest: tuple[int, int]
    keys_T: Tensor | None

    @classmethod
    def of(cls, segments: Seq[Span], device: torch.device) -> "Offsets":
        """segments: they follow each other without gaps, from position 0."""
        queries = np.array([segment.end - segment.start for segment in segments])
        prompts = np.array([segment.prompt_end - segment.prompt_start for segment in segments])
        keys_T = None
        if prompts.any():
            ranges = [
                np.arange(start, end)
                for segment in segments
                for start, end in ((segment.prompt_start, segment.prompt_end), (segment.start, segment.end))
            ]
            keys_T = torch.from_numpy(np.concatenate(ranges)).to(device)
        return cls(
            _offsets(queries, device),
            _offsets(queries + prompts, device),
            (int(queries.max()), int((queries + prompts).max())),
            keys_T,
        )


def _offsets(lengths_N: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], lengths_N.cumsum()]).astype(np.int32)).to(device)


Kernel = Callable[[Tensor, Tensor, Tensor, Offsets, float], Tensor]
"""(query [S, H, D], key [T, K, D], value [T, K, D], offsets, scale) to the output [S, H, D]."""


def attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, offsets: Offsets, scale: float | None) -> Tensor:
    """query: [1, H, S, D]; key, value: [1, K, S, D]. Returns [1, S, H, D]."""
    query_SHD, key_TKD, value_TKD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if offsets.keys_T is not None:
        key_TKD, value_TKD = key_TKD[offsets.keys_T], value_TKD[offsets.keys_T]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return kernel(query_SHD, key_TKD, value_TKD, offsets, scale)[None]


def reference(query_SHD: Tensor, key_TKD: Tensor, value_TKD: Tensor, offsets: Offsets, scale: float) -> Tensor:
    """A call for each sequence, with a mask: on every device and in every dtype. The other kernels have to equal it."""
    out_SHD = query_SHD.new_empty(*query_SHD.shape[:2], value_TKD.shape[-1])
    queries, keys = offsets.queries_N1.tolist(), offsets.keys_N1.tolist()
    for start, end, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
        shape = (end - start, last - first)
        mask = torch.ones(shape, dtype=torch.bool, device=query_SHD.device).tril(shape[1] - shape[0])
        out = scaled_dot_product_attention(
            query_SHD[start:end].transpose(0, 1),
            key_TKD[first:last].transpose(0, 1),
            value_TKD[first:last].transpose(0, 1),
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        out_SHD[start:end] = out.transpose(0, 1)
    return out_SHD


def with_torch(
    varlen_attn: Callable[..., Any],
    query_SHD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    offsets: Offsets,
    scale: float,
) -> Tensor:
    """By torch's `varlen_attn`, whose options differ between versions: it takes a window or a flag for causal
    attention, and older ones neither a scale nor fewer key-value heads.
    """
    names = _parameters(varlen_attn)
    heads, kv_heads, size = query_SHD.shape[1], key_TKD.shape[1], query_SHD.shape[2]
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    if "scale" in names:
        options["scale"] = scale
    elif scale != size**-0.5:
        query_SHD = query_SHD * (scale * size**0.5)
    if kv_heads != heads:
        if "enable_gqa" in names:
            options["enable_gqa"] = True
        else:
            key_TKD, value_TKD = (x.repeat_interleave(heads // kv_heads, 1) for x in (key_TKD, value_TKD))
    tensors = (tensor.contiguous() for tensor in (query_SHD, key_TKD, value_TKD))
    out: Tensor = varlen_attn(*tensors, offsets.queries_N1, offsets.keys_N1, *offsets.longest, **options)
    return out


def with_flash_attn(
    flash_attn_varlen_func: Callable[..., Any],
    query_SHD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    offsets: Offsets,
    scale: float,
) -> Tensor:
    """By the package flash-attn, 2.1 or newer: since then causal sequences end together, whatever their lengths."""
    tensors = (tensor.contiguous() for tensor in (query_SHD, key_TKD, value_TKD))
    out: Tensor = flash_attn_varlen_func(
        *tensors, offsets.queries_N1, offsets.keys_N1, *offsets.longest, softmax_scale=scale, causal=True
    )
    return out


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def torch_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Raises RuntimeError that says why there is none."""
    _require_flash(device, dtype)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise RuntimeError(f"torch {torch.__version__} has no torch.nn.attention.varlen") from error
    return partial(with_torch, varlen_attn)


def flash_attn_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Raises RuntimeError that says why there is none."""
    _require_flash(device, dtype)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise RuntimeError(f"the package flash-attn cannot be imported ({error})") from error
    return partial(with_flash_attn, flash_attn_varlen_func)


def reference_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Raises RuntimeError on a GPU, where it would be slower than padding."""
    if device.type == "cuda":
        raise RuntimeError("a call for each sequence is slower than padding on a GPU")
    return reference


def _require_flash(device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda":
        raise RuntimeError("needs a CUDA device")
    if dtype not in HALF:
        raise RuntimeError(f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}")


KERNELS: dict[str, Callable[[torch.device, torch.dtype], Kernel]] = {
    "torch": torch_kernel,
    "flash_attn": flash_attn_kernel,
    "reference": reference_kernel,
}
"""By name, in the order in which they are tried."""
