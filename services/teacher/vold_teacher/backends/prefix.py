"""Hidden states of completions, with each prompt that several of them share run through the model once.

The prompts run first, padded on the left so that all end in the same column. The completions then run as rows that
follow those columns, each with the keys and values of its own prompt, which are spread over the rows one layer at a
time: the whole of a spread cache never exists.

Shape letters: P different prompts, B sequences, S padded prompt tokens, T padded completion tokens, H hidden size.
"""

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vold_packing.transformers import cache_name, undocumented

from vold_teacher.types import Sequence

with undocumented():
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class _PrefixLayer(DynamicLayer):
    """One layer's keys and values of the prompts, [P, heads, S, D], read by rows [B, heads, T, D] that follow them."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, prompt_B: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values, self._prompt_B = keys, values, prompt_B
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return (
            torch.cat([self.keys.index_select(0, self._prompt_B), key_states], -2),
            torch.cat([self.values.index_select(0, self._prompt_B), value_states], -2),
        )


def shared_hidden(model: Any, sequences: Seq[Sequence], groups: Seq[Seq[int]]) -> Tensor:
    """Hidden states [B, 1 + T, H]: row b's state t predicts completion token t of `sequences[b]`.

    model: the decoder without its head. groups: indices of the sequences that have the same prompt, each index once.
    """
    device, name = model.device, cache_name(model.forward)
    prompts_P = [sequences[group[0]].prompt for group in groups]
    lengths_P = np.array([len(prompt) for prompt in prompts_P])
    width = int(lengths_P.max())
    ids_PS = np.zeros((len(groups), width), np.int64)
    for row, prompt in enumerate(prompts_P):
        ids_PS[row, width - len(prompt) :] = prompt
    padding_P = width - lengths_P
    mask_PS = np.arange(width) >= padding_P[:, None]
    prompts_cache = DynamicCache()
    prompts_PSH = model(
        input_ids=torch.from_numpy(ids_PS).to(device),
        attention_mask=torch.from_numpy(mask_PS).to(device) if padding_P.any() else None,
        position_ids=torch.from_numpy(np.maximum(np.arange(width) - padding_P[:, None], 0)).to(device),
        use_cache=True,
        **{name: prompts_cache},
    ).last_hidden_state

    prompt_of_B = np.empty(len(sequences), np.int64)
    for number, group in enumerate(groups):
        prompt_of_B[list(group)] = number
    prompt_B = torch.from_numpy(prompt_of_B).to(device)
    first_B1H = prompts_PSH[:, -1:].index_select(0, prompt_B)
    steps = max(len(sequence.completion) for sequence in sequences) - 1
    if not steps:
        return first_B1H
    ids_BT = np.zeros((len(sequences), steps), np.int64)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence.completion) - 1] = sequence.completion[:-1]
    # Padding to the right of a completion needs no mask: under causal attention nothing that is asked for sees it.
    mask_BL = np.concatenate([mask_PS[prompt_of_B], np.ones((len(sequences), steps), np.bool_)], 1)
    layers: list[Any] = prompts_cache.layers
    rest_BTH = model(
        input_ids=torch.from_numpy(ids_BT).to(device),
        attention_mask=torch.from_numpy(mask_BL).to(device),
        position_ids=torch.from_numpy(lengths_P[prompt_of_B][:, None] + np.arange(steps)).to(device),
        use_cache=True,
        **{name: Cache(layers=[_PrefixLayer(layer.keys, layer.values, prompt_B) for layer in layers])},
    ).last_hidden_state
    return torch.cat([first_B1H, rest_BTH], 1)
