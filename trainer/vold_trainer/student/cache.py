"""The key-value cache of a decode loop. Shapes: B sequences, H heads, S positions, D values of a head."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from vold_packing.transformers import undocumented

with undocumented():
    from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values of an attention layer in memory that is reserved once: a new token is written in its place,
    where transformers' own layer copies all that came before it.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.keys: Any = None
        self.values: Any = None
        self._reserved: tuple[Tensor, Tensor] | None = None

    @property
    def held(self) -> int:
        """Positions that were written."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, H, new, D]; returns all of them, [B, H, S, D]."""
        if not self.is_initialized:
            # Nothing is reserved for prompts: `reorder_cache` does it for the sequences that are decoded from them.
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        start = self.held
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
        """Keep the sequences beam_idx, in that order; one may be there several times."""
        if length := self.held:
            rows = beam_idx.to(self.keys.device)
            keys, values = self._reserve(self.keys.index_select(0, rows), self.values.index_select(0, rows))
            self._reserved = (keys, values)
            self.keys, self.values = keys[:, :, :length], values[:, :, :length]

    def _reserve(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Both at the start of memory for `capacity` positions."""
        reserved = []
        for held in (keys, values):
            room = held.new_empty((*held.shape[:-2], self.capacity, held.shape[-1]))
            room[:, :, : held.shape[-2]] = held
            reserved.append(room)
        return reserved[0], reserved[1]


def decoding_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """The cache that a model of this config takes, with `capacity` positions reserved in its attention layers.

    Layers of other kinds (sliding window, linear attention) hold little and stay as transformers has them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
