"""Attention over packed segments in one call: the reference against the formula, and what the kernels are called with.

The kernels themselves need a GPU: tests/gpu compares them with the reference there.
"""

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn
from vold_packing import varlen
from vold_packing.packed import Segment

CPU = torch.device("cpu")


def segments_of(groups: list[tuple[int, list[int]]]) -> list[Segment]:
    """Prompts of these lengths, each followed by the tokens of completions that share it."""
    segments, end = [], 0
    for prompt, completions in groups:
        start, end = end, end + prompt
        segments.append(Segment(start, end))
        shared = (start, end)
        for length in completions:
            segments.append(Segment(end, end + length, *shared))
            end += length
    return segments


def tensors(segments: list[Segment], heads: int, kv_heads: int, seed: int) -> list[torch.Tensor]:
    """(query [1, H, S, D], key, value [1, K, S, D]), float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (segments[-1].end, 4)
    return [torch.randn(1, n, *shape, generator=generator, dtype=torch.float64) for n in (heads, kv_heads, kv_heads)]


def by_formula(query, key, value, segments: list[Segment], scale: float) -> torch.Tensor:
    """softmax(scale q k) v, query by query, [1, S, H, D]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    out = torch.zeros(1, query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype)
    for segment in segments:
        for position in range(segment.start, segment.end):
            seen = [*range(segment.prompt_start, segment.prompt_end), *range(segment.start, position + 1)]
            weights = (scale * torch.einsum("hd,hkd->hk", query[0, :, position], key[0][:, seen])).softmax(-1)
            out[0, position] = torch.einsum("hk,hkd->hd", weights, value[0][:, seen])
    return out


GROUPS = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=3)


def with_window(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1),
                enable_gqa=False):  # fmt: skip
    """What torch 2.13 documents of varlen_attn."""
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    return varlen.reference(query, key, value, varlen.Offsets(cu_seq_q, cu_seq_k, (max_q, max_k), None), scale)


def with_flag(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """What torch 2.10 documents of varlen_attn: as many key-value heads as heads, and its own scale."""
    assert is_causal
    assert query.shape[1] == key.shape[1]
    scale = query.shape[2] ** -0.5
    return varlen.reference(query, key, value, varlen.Offsets(cu_seq_q, cu_seq_k, (max_q, max_k), None), scale)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                           softmax_scale=None, causal=False):  # fmt: skip
    """What flash-attn 2.8 documents."""
    assert causal
    offsets = varlen.Offsets(cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k), None)
    return varlen.reference(q, k, v, offsets, softmax_scale)


KERNELS = {
    "reference": varlen.reference,
    "torch, a window": partial(varlen.with_torch, with_window),
    "torch, a flag": partial(varlen.with_torch, with_flag),
    "flash_attn": partial(varlen.with_flash_attn, flash_attn_varlen_func),
}


@settings(max_examples=20)
@given(GROUPS, st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.sampled_from([None, 0.3]), st.integers(0, 2**31))
def test_attention_is_softmax_over_the_prompt_and_what_came_before(groups, heads, scale, seed):
    segments = segments_of(groups)
    query, key, value = tensors(segments, *heads, seed)
    offsets = varlen.Offsets.of(segments, CPU)
    assert offsets.queries_N1[-1] == segments[-1].end
    assert (offsets.keys_T is None) == all(not segment.prompt_end for segment in segments)
    expected = by_formula(query, key, value, segments, 0.5 if scale is None else scale)
    for name, kernel in KERNELS.items():
        found = varlen.attend(kernel, query, key, value, offsets, scale)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)


def test_torch_takes_what_its_kernel_is_called_with():
    names = inspect.signature(varlen_attn).parameters
    assert list(names)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(names)


def test_a_kernel_that_cannot_be_had_says_why():
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        varlen.torch_kernel(CPU, torch.bfloat16)
    cuda = torch.device("cuda")
    with pytest.raises(RuntimeError, match="needs bfloat16 or float16, not float32"):
        varlen.flash_attn_kernel(cuda, torch.float32)
    with pytest.raises(RuntimeError, match="slower than padding"):
        varlen.reference_kernel(cuda, torch.float32)
    assert varlen.reference_kernel(CPU, torch.float32) is varlen.reference
