"""A transformers model that decodes step by step. Shapes: P prompts, B sequences, S prompt positions, V vocabulary."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vold_trainer.rollout.cache import decoding_cache


class Decoder:
    """Sequences in the middle of being decoded, and the logits of what comes next in each, [B, V].

    At the start there is one sequence a prompt; `keep` makes several of one, or drops some.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: int) -> None:
        """inputs: prompts as `Student.encode` makes them, padded on the left. tokens: how many may follow at most."""
        self.model: Any = model
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        mask_PS = inputs["attention_mask"]
        self._length = mask_PS.shape[1]
        self._cache: Any = decoding_cache(model.config, self._length + tokens)

        # Models that place pictures in two dimensions work the prompt's positions out themselves, and keep by how much
        # they differ from a count of tokens. All others are told, as not all of them look at the padding.
        places: list[Any] = [module for module in model.modules() if hasattr(module, "rope_deltas")]
        for module in places:
            module.rope_deltas = None
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        if self._takes_positions and not (places and _pictured(inputs)):
            options["position_ids"] = (mask_PS.cumsum(-1) - 1).clamp(min=0)
        self.logits_BV = self._run(**inputs, **options)

        deltas = [module.rope_deltas for module in places if module.rope_deltas is not None]
        self._next_B1 = mask_PS.sum(-1, keepdim=True) + (deltas[0].to(mask_PS.device) if deltas else 0)
        self._mask_BS = torch.cat([mask_PS, mask_PS.new_ones(len(mask_PS), tokens)], -1)

    def keep(self, sequences: Tensor) -> None:
        """Go on with these sequences, int64 [B], in that order; one may be there several times."""
        self._cache.reorder_cache(sequences)
        self.logits_BV = self.logits_BV[sequences]
        self._next_B1 = self._next_B1[sequences]
        self._mask_BS = self._mask_BS[sequences]

    def feed(self, ids_B: Tensor) -> None:
        """Append a token to each sequence."""
        self._length += 1
        options = {"position_ids": self._next_B1} if self._takes_positions else {}
        mask_BS = self._mask_BS[:, : self._length]
        self.logits_BV = self._run(input_ids=ids_B.unsqueeze(-1), attention_mask=mask_BS, **options)
        self._next_B1 = self._next_B1 + 1

    def _run(self, **inputs: Any) -> Tensor:
        logits_BSV: Tensor = self.model(**inputs, past_key_values=self._cache, use_cache=True).logits
        return logits_BSV[:, -1]


def _pictured(inputs: Mapping[str, Tensor]) -> bool:
    """Whether there is more in the inputs than values of tokens."""
    shape = inputs["input_ids"].shape
    return any(value.shape != shape for value in inputs.values())
