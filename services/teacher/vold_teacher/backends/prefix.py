"""Hidden states of completions; a prompt that several completions share runs through the model once.

The prompts run first, padded on the left so that all end in the same column. The completions follow as rows, each with
the keys and values of its prompt. These are copied to the rows one layer at a time: a copy of the whole cache never
exists.

Shape letters: P different prompts, B sequences, S padded prompt tokens, T padded completion tokens, H hidden size.
"""

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vold_packing.transformers import cache_name, undocumented

from vold_teacher.types import Ids, Sequence

with undocumented():
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class _PrefixLayer(DynamicLayer):
    """The keys and values [P, heads, S, D] of the prompts in one layer, for the rows [B, heads, T, D] that follow."""

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


def shared_prompt_states(model: Any, sequences: Seq[Sequence], groups: Seq[Seq[int]]) -> Tensor:
    """Hidden states [B, 1 + T, H]: state t of row b predicts completion token t of `sequences[b]`.

    model: the decoder without its head. groups: indices of the sequences of each prompt; every index occurs once.
    """
    device = model.device
    prompts_P = [sequences[group[0]].prompt for group in groups]
    cache = DynamicCache()
    last_P1H, mask_PS = _run_prompts(model, prompts_P, cache)
    prompt_of_B = np.empty(len(sequences), np.int64)
    for number, group in enumerate(groups):
        prompt_of_B[list(group)] = number
    prompt_B = torch.from_numpy(prompt_of_B).to(device)
    first_B1H = last_P1H.index_select(0, prompt_B)
    steps = max(len(sequence.completion) for sequence in sequences) - 1
    if not steps:
        return first_B1H
    ids_BT = np.zeros((len(sequences), steps), np.int64)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence.completion) - 1] = sequence.completion[:-1]
    # Padding after a completion needs no mask: under causal attention no scored token attends to it.
    mask_BL = np.concatenate([mask_PS[prompt_of_B], np.ones((len(sequences), steps), np.bool_)], 1)
    lengths_B = np.array([len(sequence.prompt) for sequence in sequences])
    prompt_layers: list[Any] = cache.layers
    layers: list[Any] = [_PrefixLayer(layer.keys, layer.values, prompt_B) for layer in prompt_layers]
    rest_BTH = model(
        input_ids=torch.from_numpy(ids_BT).to(device),
        attention_mask=torch.from_numpy(mask_BL).to(device),
        position_ids=torch.from_numpy(lengths_B[:, None] + np.arange(steps)).to(device),
        use_cache=True,
        **{cache_name(model.forward): Cache(layers=layers)},
    ).last_hidden_state
    return torch.cat([first_B1H, rest_BTH], 1)


def _run_prompts(model: Any, prompts_P: Seq[Ids], cache: Cache) -> tuple[Tensor, NDArray[np.bool_]]:
    """Run the prompts, padded on the left, into `cache`. Returns their last states [P, 1, H] and their mask [P, S]."""
    lengths_P = np.array([len(prompt) for prompt in prompts_P])
    width = int(lengths_P.max())
    ids_PS = np.zeros((len(prompts_P), width), np.int64)
    for row, prompt in enumerate(prompts_P):
        ids_PS[row, width - len(prompt) :] = prompt
    padding_P = width - lengths_P
    mask_PS = np.arange(width) >= padding_P[:, None]
    prompts_PSH = model(
        input_ids=torch.from_numpy(ids_PS).to(model.device),
        attention_mask=torch.from_numpy(mask_PS).to(model.device) if padding_P.any() else None,
        position_ids=torch.from_numpy(np.maximum(np.arange(width) - padding_P[:, None], 0)).to(model.device),
        use_cache=True,
        **{cache_name(model.forward): cache},
    ).last_hidden_state
    return prompts_PSH[:, -1:], mask_PS
