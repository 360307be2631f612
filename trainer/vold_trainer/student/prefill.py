"""The forward pass over the prompts, which fills the cache before decoding or before scoring completions.

Shapes: P prompts, B sequences, S prompt positions, T completion positions, H hidden size.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from vold_packing.transformers import cache_name

PROMPT_INDEX, COMPLETION_IDS, COMPLETION_MASK = "prompt_index", "completion_ids", "completion_mask"
"""Inputs of a batch whose completions share prompts: the index of each completion's prompt, int64 [B]; ids and mask of
the completions, [B, T], padded on the right. The other inputs of such a batch are those of the prompts alone.
"""


def prefill(module: nn.Module, inputs: Mapping[str, Tensor], cache: Cache, **options: Any) -> tuple[Any, Tensor]:
    """Run the module on the prompts, which fills the cache. Returns (its output, the position of the next token, int64
    [P, 1]).

    inputs: prompts from `Student.encode`, padded on the left.
    """
    mask_PS = inputs["attention_mask"]
    # Models with two-dimensional image positions compute the positions of a prompt themselves, and store the difference
    # from the count of tokens. The others are given positions, because not all of them consider the padding.
    position_modules: list[Any] = [part for part in module.modules() if hasattr(part, "rope_deltas")]
    for part in position_modules:
        part.rope_deltas = None
    if takes_positions(module) and not (position_modules and _has_images(inputs)):
        options["position_ids"] = (mask_PS.cumsum(-1) - 1).clamp(min=0)
    output = module(**{**inputs, **options, cache_name(module.forward): cache}, use_cache=True)
    deltas = [part.rope_deltas for part in position_modules if part.rope_deltas is not None]
    next_P1 = mask_PS.sum(-1, keepdim=True)
    return output, next_P1 + deltas[0].to(next_P1.device) if deltas else next_P1


def takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


def _has_images(inputs: Mapping[str, Tensor]) -> bool:
    """Whether any input is not one value per token."""
    shape = inputs["input_ids"].shape
    return any(value.shape != shape for value in inputs.values())


def shared_hidden(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The hidden states that predict each token of completions that share prompts, [B, T, H]. Each prompt, with its
    images, goes through the model once. Gradients flow.
    """
    prompts = dict(inputs)
    prompt_B, ids_BT, mask_BT = (prompts.pop(name) for name in (PROMPT_INDEX, COMPLETION_IDS, COMPLETION_MASK))
    base: Any = model.base_model
    cache: Any = DynamicCache(config=model.config)
    output, next_P1 = prefill(base, prompts, cache)
    first_B1H: Tensor = output.last_hidden_state[prompt_B, -1:]
    if ids_BT.shape[1] == 1:
        return first_B1H
    cache.reorder_cache(prompt_B)
    mask_BS = torch.cat([prompts["attention_mask"][prompt_B], mask_BT[:, :-1]], -1)
    options: dict[str, Any] = {}
    if takes_positions(base):
        options["position_ids"] = next_P1[prompt_B] + torch.arange(ids_BT.shape[1] - 1, device=ids_BT.device)
    options[cache_name(base.forward)] = cache
    later = base(input_ids=ids_BT[:, :-1], attention_mask=mask_BS, use_cache=True, **options)
    return torch.cat([first_B1H, later.last_hidden_state], 1)
