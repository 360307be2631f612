"""Hidden states of completions in one pass without padding, each prompt run through the model once.

All prompts and completions of a pass lie one after another as a single row, so that every layer's products run over
real tokens alone. What keeps them apart is attention, the one place where tokens meet: each stretch of the row looks
at itself and, where it is a completion whose prompt others share, at that prompt.

For CPUs, where padding and masks cost as much as the tokens that they stand for, and a call for each stretch costs
little. Shape letters: S packed tokens, R rows that predict, H hidden size, D head size.
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

with undocumented():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

ATTENTION = "vold_packed"
"""The name by which transformers knows this attention. Where nothing is packed, it is plain sdpa."""

Ids = NDArray[np.int32]

QUERIES = 256
"""Of a completion whose prompt is shared, so many tokens look at once: their mask has a row for each."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Packed tokens [start, end), and those of the prompt that they follow; prompt_end 0: they follow nothing."""

    start: int
    end: int
    prompt_start: int = 0
    prompt_end: int = 0


_stretches: ContextVar[Seq[Stretch] | None] = ContextVar("stretches", default=None)


@contextmanager
def _packed(stretches: Seq[Stretch]) -> Iterator[None]:
    token = _stretches.set(stretches)
    try:
        yield
    finally:
        _stretches.reset(token)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention: [1, heads, S, D] each, keys and values with their own number of heads; [1, S, heads, D]
    back.
    """
    stretches = _stretches.get()
    if stretches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if groups := query.shape[1] // key.shape[1] if query.shape[1] != key.shape[1] else 0:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = options.get("scaling")
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    mask = _followers_mask(stretches, query)
    for one in stretches:
        own = slice(one.start, one.end)
        if not one.prompt_end:
            found = scaled_dot_product_attention(
                query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, scale=scale
            )
            out[:, own] = found.transpose(1, 2)
        else:
            prompt = slice(one.prompt_start, one.prompt_end)
            keys = torch.cat([key[:, :, prompt], key[:, :, own]], 2)
            values = torch.cat([value[:, :, prompt], value[:, :, own]], 2)
            assert mask is not None
            widest = mask.shape[1] - mask.shape[0]
            for start in range(one.start, one.end, QUERIES):
                stop = min(start + QUERIES, one.end)
                before = one.prompt_end - one.prompt_start + start - one.start
                found = scaled_dot_product_attention(
                    query[:, :, start:stop],
                    keys[:, :, : before + stop - start],
                    values[:, :, : before + stop - start],
                    attn_mask=mask[: stop - start, widest - before : widest + stop - start],
                    scale=scale,
                )
                out[:, start:stop] = found.transpose(1, 2)
    return out, None


def _followers_mask(stretches: Seq[Stretch], query: Tensor) -> Tensor | None:
    """[Q, W + Q] for Q tokens that follow W others: 0 where a token may look, -inf elsewhere. The mask of fewer tokens
    that follow fewer is a part of it.
    """
    following = [one for one in stretches if one.prompt_end]
    if not following:
        return None
    rows = min(QUERIES, max(one.end - one.start for one in following))
    before = max(one.prompt_end - one.prompt_start + one.end - one.start for one in following)
    return query.new_full((rows, before + rows), -torch.inf).triu(before + 1)


def _mask(*args: Any, **options: Any) -> Tensor | None:
    return None if _stretches.get() is not None else sdpa_mask(*args, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def packed_states(model: Any, groups: Seq[tuple[Ids, Seq[Ids]]]) -> Tensor:
    """The states [R, H] that predict the tokens of all completions, one completion after another.

    model: the decoder without its head, with this module's attention. groups: prompts, each with its completions; every
    prompt and every completion holds at least one id.
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    stretches: list[Stretch] = []
    rows: list[np.ndarray] = []
    at = 0

    def lay(tokens: np.ndarray, position: int) -> int:
        nonlocal at
        ids.append(tokens)
        positions.append(np.arange(position, position + len(tokens)))
        at += len(tokens)
        return at - len(tokens)

    for prompt, completions in groups:
        start = lay(prompt, 0)
        end = at
        if len(completions) == 1:
            lay(completions[0][:-1], len(prompt))
            stretches.append(Stretch(start, at))
            rows.append(np.arange(end - 1, at))
            continue
        stretches.append(Stretch(start, end))
        for completion in completions:
            rest = completion[:-1]
            first = lay(rest, len(prompt))
            rows.append(np.concatenate([[end - 1], np.arange(first, at)]))
            if len(rest):
                stretches.append(Stretch(first, at, start, end))
    device = model.device
    with _packed(stretches):
        hidden_SH: Tensor = model(
            input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None].to(device),
            position_ids=torch.from_numpy(np.concatenate(positions))[None].to(device),
            use_cache=False,
        ).last_hidden_state[0]
    return hidden_SH[torch.from_numpy(np.concatenate(rows)).to(device)]
