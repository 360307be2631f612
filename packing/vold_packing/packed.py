"""Hidden states of completions in one pass without padding; each prompt runs through the model once.

All prompts and completions of a pass form a single row, so that the matrix products of every layer run over real tokens
only. Attention keeps them apart: each segment of the row attends to itself and, if it is a completion of a shared
prompt, to that prompt.

The attention `ATTENTION` is for CPUs, where padding and masks cost as much as real tokens, and one attention call per
segment costs little. The attentions that `register_varlen` makes take one call for all segments (`varlen`). Shape
letters: S packed tokens, R rows that predict a completion token, H hidden size, D head size.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vold_packing.transformers import undocumented
from vold_packing.varlen import Kernel, Offsets, attend

with undocumented():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

ATTENTION = "vold_packed"
"""The name of this attention in transformers. Outside `packed_states` it is plain sdpa."""

Ids = NDArray[np.int32]

QUERY_BLOCK = 256
"""Tokens of a completion of a shared prompt per attention call, whose mask has a row for each of them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Packed tokens [start, end), and the tokens of their shared prompt; prompt_end 0: no shared prompt."""

    start: int
    end: int
    prompt_start: int = 0
    prompt_end: int = 0


_segments: ContextVar[Seq[Segment] | None] = ContextVar("segments", default=None)
_offsets: ContextVar[Offsets | None] = ContextVar("offsets", default=None)
"""Of the segments, once a layer has asked for them; None before."""


@contextmanager
def _packed(segments: Seq[Segment]) -> Iterator[None]:
    tokens = _segments.set(segments), _offsets.set(None)
    try:
        yield
    finally:
        _segments.reset(tokens[0])
        _offsets.reset(tokens[1])


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers. query, key, value: [1, heads, S, D]; keys and values may have fewer heads.
    Returns [1, S, heads, D].
    """
    segments = _segments.get()
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if groups := query.shape[1] // key.shape[1] if query.shape[1] != key.shape[1] else 0:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = options.get("scaling")
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    mask = _continuation_mask(segments, query)
    for segment in segments:
        own = slice(segment.start, segment.end)
        if not segment.prompt_end:
            attended = scaled_dot_product_attention(
                query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, scale=scale
            )
            out[:, own] = attended.transpose(1, 2)
        else:
            assert mask is not None
            _attend_to_prompt(segment, query, key, value, mask, scale, out)
    return out, None


def _attend_to_prompt(
    segment: Segment, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, out: Tensor
) -> None:
    """Write the attention of a completion of a shared prompt into `out`, block by block. mask: _continuation_mask."""
    own, prompt = slice(segment.start, segment.end), slice(segment.prompt_start, segment.prompt_end)
    keys = torch.cat([key[:, :, prompt], key[:, :, own]], 2)
    values = torch.cat([value[:, :, prompt], value[:, :, own]], 2)
    widest = mask.shape[1] - mask.shape[0]
    for start in range(segment.start, segment.end, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, segment.end)
        before = segment.prompt_end - segment.prompt_start + start - segment.start
        attended = scaled_dot_product_attention(
            query[:, :, start:stop],
            keys[:, :, : before + stop - start],
            values[:, :, : before + stop - start],
            attn_mask=mask[: stop - start, widest - before : widest + stop - start],
            scale=scale,
        )
        out[:, start:stop] = attended.transpose(1, 2)


def _continuation_mask(segments: Seq[Segment], query: Tensor) -> Tensor | None:
    """[Q, W + Q] for Q tokens that follow W others: 0 if a token may attend, else -inf. The mask for fewer tokens is a
    slice of it. None if no segment has a shared prompt.
    """
    continuations = [segment for segment in segments if segment.prompt_end]
    if not continuations:
        return None
    rows = min(QUERY_BLOCK, max(segment.end - segment.start for segment in continuations))
    before = max(segment.prompt_end - segment.prompt_start + segment.end - segment.start for segment in continuations)
    return query.new_full((rows, before + rows), -torch.inf).triu(before + 1)


def _mask(*args: Any, **options: Any) -> Tensor | None:
    return None if _segments.get() is not None else sdpa_mask(*args, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def register_varlen(name: str, kernel: Kernel) -> str:
    """Register an attention that computes all segments in one call of `kernel`. Returns its name in transformers, which
    is new for each `name`. Outside `packed_states` it is plain sdpa.
    """

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        segments = _segments.get()
        if segments is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        offsets = _offsets.get()
        if offsets is None:  # the first layer of this pass
            offsets = Offsets.of(segments, query.device)
            _offsets.set(offsets)
        return attend(kernel, query, key, value, offsets, options.get("scaling")), None

    AttentionInterface.register(f"{ATTENTION}_{name}", attention)
    AttentionMaskInterface.register(f"{ATTENTION}_{name}", _mask)
    return f"{ATTENTION}_{name}"


def packed_states(model: Any, groups: Seq[tuple[Ids, Seq[Ids]]], *, apart: bool = False) -> Tensor:
    """The states [R, H] that predict the tokens of all completions, one completion after another.

    model: the decoder without its head, with this module's attention. groups: prompts with their completions; every
    prompt and every completion has at least one id. apart: compute the attention of a prompt with a single completion
    as that of a shared one, in calls of their own, so that the shapes of a completion's calls follow from the lengths
    of its prompt and itself alone. One call for both is faster, and differs in the last bits.
    """
    layout = _lay_out(groups, apart)
    device = model.device
    with _packed(layout.segments):
        hidden_SH: Tensor = model(
            input_ids=torch.from_numpy(layout.ids_S)[None].to(device),
            position_ids=torch.from_numpy(layout.positions_S)[None].to(device),
            use_cache=False,
        ).last_hidden_state[0]
    return hidden_SH[torch.from_numpy(layout.rows_R).to(device)]


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """The packed row. ids_S, positions_S, rows_R: int64; rows_R are the indices in S that predict completion tokens."""

    ids_S: NDArray[np.int64]
    positions_S: NDArray[np.int64]
    rows_R: NDArray[np.int64]
    segments: list[Segment]


def _lay_out(groups: Seq[tuple[Ids, Seq[Ids]]], apart: bool) -> _Layout:
    """Each prompt and then its completions, without their last tokens, in one row."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    rows: list[np.ndarray] = []
    size = 0

    def append(tokens: np.ndarray, position: int) -> int:
        nonlocal size
        ids.append(tokens)
        positions.append(np.arange(position, position + len(tokens)))
        size += len(tokens)
        return size - len(tokens)

    for prompt, completions in groups:
        start = append(prompt, 0)
        end = size
        if len(completions) == 1 and not apart:
            append(completions[0][:-1], len(prompt))
            segments.append(Segment(start, size))
            rows.append(np.arange(end - 1, size))
            continue
        segments.append(Segment(start, end))
        for completion in completions:
            rest = completion[:-1]
            first = append(rest, len(prompt))
            rows.append(np.concatenate([[end - 1], np.arange(first, size)]))
            if len(rest):
                segments.append(Segment(first, size, start, end))
    return _Layout(np.concatenate(ids).astype(np.int64), np.concatenate(positions), np.concatenate(rows), segments)
