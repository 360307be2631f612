"""A model's first look at prompts, before what follows them is fed in one token or many at a time.

Shapes: P prompts, B sequences, S prompt positions, T completion positions, H hidden size.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from vold_packing.transformers import cache_name

PROMPT_OF, COMPLETION_IDS, COMPLETION_MASK = "prompt_of", "completion_ids", "completion_mask"
"""In the inputs of a batch whose completions share prompts: for each completion which prompt it is of, int64 [B]; its
ids and where it has any, [B, T], padded on the right. The other inputs are then those of the prompts alone.
"""


def prefill(module: nn.Module, inputs: Mapping[str, Tensor], cache: Cache, **options: Any) -> tuple[Any, Tensor]:
    """(the module's output for the prompts, the position of what comes next, int64 [P, 1]); fills the cache.

    inputs: as `Student.encode` makes them, padded on the left.
    """
    mask_PS = inputs["attention_mask"]
    # Models that place pictures in two dimensions work the prompt's positions out themselves, and keep by how much
    # they differ from a count of tokens. All others are told, as not all of them look at the padding.
    places: list[Any] = [part for part in module.modules() if hasattr(part, "rope_deltas")]
    for place in places:
        place.rope_deltas = None
    if takes_positions(module) and not (places and _pictured(inputs)):
        options["position_ids"] = (mask_PS.cumsum(-1) - 1).clamp(min=0)
    output = module(**{**inputs, **options, cache_name(module.forward): cache}, use_cache=True)
    deltas = [place.rope_deltas for place in places if place.rope_deltas is not None]
    next_P1 = mask_PS.sum(-1, keepdim=True)
    return output, next_P1 + deltas[0].to(next_P1.device) if deltas else next_P1


def takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


def _pictured(inputs: Mapping[str, Tensor]) -> bool:
    """Whether there is more in the inputs than values of tokens."""
    shape = inputs["input_ids"].shape
    return any(value.shape != shape for value in inputs.values())


def shared_hidden(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The states that predict each token of completions that share prompts, [B, T, H]: each prompt, with its pictures,
    goes through the model once. Gradients flow.
    """
    prompts = dict(inputs)
    prompt_B, ids_BT, mask_BT = (prompts.pop(name) for name in (PROMPT_OF, COMPLETION_IDS, COMPLETION_MASK))
    base: Any = model.base_model
    cache: Any = DynamicCache(config=model.config)
    output, next_P1 = prefill(base, prompts, cache)
    first_B1H: Tensor = output.last_hidden_state[prompt_B, -1:]
    if ids_BT.shape[1] == 1:
        return first_B1H
    cache.reorder_cache(prompt_B)
    seen_BS = torch.cat([prompts["attention_mask"][prompt_B], mask_BT[:, :-1]], -1)
    options: dict[str, Any] = {}
    if takes_positions(base):
        options["position_ids"] = next_P1[prompt_B] + torch.arange(ids_BT.shape[1] - 1, device=ids_BT.device)
    options[cache_name(base.forward)] = cache
    later = base(input_ids=ids_BT[:, :-1], attention_mask=seen_BS, use_cache=True, **options)
    return torch.cat([first_B1H, later.last_hidden_state], 1)
