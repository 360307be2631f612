"""The key-value cache of a decoding loop. Shapes: B sequences, H heads, S positions, D values of a head."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from vold_packing.transformers import undocumented

with undocumented():
    from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values of an attention layer in memory that is reserved once. A new token is written in place, whereas
    transformers' DynamicLayer copies all earlier tokens.

    Keys are stored in the dtype of the values. With autocast they come in float32 from the rotation, and each attention
    would cast all of them to that dtype again.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.keys: Any = None
        self.values: Any = None
        self._reserved: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Number of positions written."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, H, new, D]; return keys and values of all positions, [B, H, S, D]."""
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            # The prompts get no reserved memory: `reorder_cache` reserves it for the sequences decoded from them.
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        start = self.length
        end = start + key_states.shape[-2]
        if self._reserved is None or end > self._reserved[0].shape[-2]:
            self.capacity = max(self.capacity, 2 * start, end)
            self._reserved = self._reserve(self.keys, self.values)
        keys, values = self._reserved
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences beam_idx, in that order. An index may be repeated."""
        if length := self.length:
            rows = beam_idx.to(self.keys.device)
            keys, values = self._reserve(self.keys.index_select(0, rows), self.values.index_select(0, rows))
            self._reserved = (keys, values)
            self.keys, self.values = keys[:, :, :length], values[:, :, :length]

    def _reserve(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Copy both to the start of new memory for `capacity` positions."""
        reserved = []
        for tensor in (keys, values):
            memory = tensor.new_empty((*tensor.shape[:-2], self.capacity, tensor.shape[-1]))
            memory[:, :, : tensor.shape[-2]] = tensor
            reserved.append(memory)
        return reserved[0], reserved[1]


def decoding_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """A cache for a model of this config, with `capacity` positions reserved in its attention layers.

    Layers of other kinds (sliding window, linear attention) need little memory, and remain those of transformers.
    """
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
