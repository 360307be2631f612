"""Step-by-step decoding with a transformers model. Shapes: P prompts, B sequences, S prompt positions, V vocabulary."""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from vold_packing.transformers import cache_name

from vold_trainer.student.cache import decoding_cache
from vold_trainer.student.prefill import prefill, takes_positions
from vold_trainer.student.shared_prompts import SharedPrompts, can_share


class Decoder:
    """Sequences that are being decoded, and logits_BV, the logits of the next token of each.

    At first there is one sequence per prompt. `select` repeats sequences or drops them.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: int) -> None:
        """inputs: prompts from `Student.encode`, padded on the left. tokens: most tokens of a completion."""
        self.model: Any = model
        self._takes_positions = takes_positions(model)
        self._cache_name = cache_name(model.forward)
        mask_PS = inputs["attention_mask"]
        self._length = mask_PS.shape[1]
        self._tokens = tokens
        self._shared: SharedPrompts | None = None
        self._cache: Any = decoding_cache(model.config, self._length + tokens)
        last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        output, self._next_B1 = prefill(model, inputs, self._cache, **({"logits_to_keep": 1} if last_only else {}))
        self.logits_BV = output.logits[:, -1]
        self._mask_BS = torch.cat([mask_PS, mask_PS.new_ones(len(mask_PS), tokens)], -1)

    @property
    def shares_prompts(self) -> bool:
        """Whether keys and values of a prompt are stored once for all of its sequences."""
        return self._shared is not None

    def select(self, sequences: Tensor) -> None:
        """Continue with these sequences, int64 [B], in that order. An index may be repeated."""
        if self._shared is not None:
            self._shared.select(sequences)
        elif len(sequences) > len(self.logits_BV) and self._takes_positions and can_share(self.model, self._cache):
            self._shared = SharedPrompts(self._cache, sequences, self._mask_BS[:, : self._length], self._tokens)
        else:
            self._cache.reorder_cache(sequences)
        self.logits_BV = self.logits_BV[sequences]
        self._next_B1 = self._next_B1[sequences]
        self._mask_BS = self._mask_BS[sequences]

    def feed(self, ids_B: Tensor) -> None:
        """Append a token to each sequence and compute the logits of the next."""
        self._length += 1
        options = {self._cache_name: self._cache}
        if self._takes_positions:
            options["position_ids"] = self._next_B1
        mask_BS = self._mask_BS[:, : self._length]
        with self._shared.attention_enabled(self.model) if self._shared is not None else nullcontext():
            logits_B1V: Tensor = self.model(
                input_ids=ids_B.unsqueeze(-1),
                attention_mask=mask_BS,
                use_cache=True,
                **options,
            ).logits
        self.logits_BV = logits_B1V[:, -1]
        self._next_B1 = self._next_B1 + 1
