"""Attention of sequences that are decoded from shared prompts. Keys and values of a prompt are stored once.

A decoding step reads all keys and values of every sequence for one new token. Reading them takes most of the time, and
storing them most of the memory. The keys and values of a prompt are the same for all completions of its group, so they
are stored and read once. One softmax covers the scores of the prompt and of the completion.

Shapes: P prompts, B sequences, G the largest number of sequences of a prompt, K key-value heads, R query heads per
key-value head, H = K * R query heads, S prompt positions, T completion positions, D size of a key, V size of a value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from vold_packing.transformers import undocumented

from vold_trainer.errors import RunError
from vold_trainer.student.cache import ReservedLayer

with undocumented():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

ATTENTION = "vold_shared_prompts"
"""The name of this attention in transformers. If no prompts are shared, it is sdpa."""


class SharedLayer(ReservedLayer):
    """Keys and values of completions, beside those of their prompts."""

    def __init__(self, prompts: ReservedLayer, tokens: int) -> None:
        super().__init__(tokens)
        self.prompt_keys: Tensor = prompts.keys
        self.prompt_values: Tensor = prompts.values

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[-2] + self.length


class SharedPrompts:
    """The prompt of each sequence in a cache, and the attention that uses it."""

    def __init__(self, cache: Any, prompt_B: Tensor, mask_PS: Tensor, tokens: int) -> None:
        """cache: filled with the prompts alone; its layers are replaced by SharedLayer. prompt_B: the index of each
        sequence's prompt. mask_PS: 1 at prompt tokens, 0 at padding. tokens: most tokens of a completion.
        """
        self._layers = [SharedLayer(layer, tokens) for layer in cache.layers]
        cache.layers = list(self._layers)
        self._prompt_B = prompt_B
        padding_P1S = mask_PS.unsqueeze(1) == 0
        self._mask_P1S = torch.zeros_like(padding_P1S, dtype=torch.float32).masked_fill(padding_P1S, -torch.inf)
        self._layers_used = 0
        self._assign_slots()

    def select(self, sequences: Tensor) -> None:
        """Continue with these sequences, int64 [B]. Prompts without a sequence are dropped."""
        for layer in self._layers:
            layer.reorder_cache(sequences)
        prompts, self._prompt_B = self._prompt_B[sequences].unique(return_inverse=True)
        if len(prompts) < len(self._mask_P1S):
            self._mask_P1S = self._mask_P1S[prompts]
            for layer in self._layers:
                layer.prompt_keys, layer.prompt_values = layer.prompt_keys[prompts], layer.prompt_values[prompts]
        self._assign_slots()

    def _assign_slots(self) -> None:
        """Assign every sequence to one of P * G slots, with G slots per prompt."""
        count_P = self._prompt_B.bincount(minlength=len(self._mask_P1S))
        self._group = int(count_P.max())
        order_B = self._prompt_B.argsort(stable=True)
        first_P = count_P.cumsum(0) - count_P
        slot_B = torch.empty_like(order_B)
        sorted_B = self._prompt_B[order_B]
        slot_B[order_B] = sorted_B * self._group + torch.arange(len(order_B), device=order_B.device) - first_P[sorted_B]
        self._slots = len(self._mask_P1S) * self._group
        in_order = torch.arange(len(slot_B), device=slot_B.device)
        self._slot_B = None if self._slots == len(slot_B) and bool((slot_B == in_order).all()) else slot_B

    @contextmanager
    def attention_enabled(self, model: PreTrainedModel) -> Iterator[None]:
        """Use this attention in the model, for a forward pass with one token per sequence.

        Raises RunError if the layers of the model do not use transformers' attention interface.
        """
        config: Any = model.config.get_text_config(decoder=True)
        previous, token, self._layers_used = config._attn_implementation, _active.set(self), 0
        config._attn_implementation = ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = previous
            _active.reset(token)
        if self._layers_used != len(self._layers):
            raise RunError(
                f"{type(model).__name__}: {len(self._layers)} layers have keys and values, {self._layers_used} read "
                'them through transformers\' attention interface. Load it with another attention than "sdpa"'
            )

    def attend(self, layer: SharedLayer, query_BH1D: Tensor, scale: float | None) -> Tensor:
        """Attention output of the new token of each sequence, [B, 1, H, V]."""
        self._layers_used += 1
        batch, heads, _, size = query_BH1D.shape
        prompts, kv_heads, positions, _ = layer.prompt_keys.shape
        repeats, group = heads // kv_heads, self._group
        query_BKRD = (query_BH1D * (size**-0.5 if scale is None else scale)).view(batch, kv_heads, repeats, size)

        in_slots = query_BKRD
        if self._slot_B is not None:
            in_slots = query_BKRD.new_zeros(self._slots, kv_heads, repeats, size)
            in_slots[self._slot_B] = query_BKRD
        query_PKGD = in_slots.view(prompts, group, kv_heads, repeats, size).transpose(1, 2)
        scores = torch.matmul(query_PKGD.reshape(prompts, kv_heads, group * repeats, size), layer.prompt_keys.mT)
        scores += self._mask_P1S.unsqueeze(1).to(scores.dtype)
        scores = scores.view(prompts, kv_heads, group, repeats, positions).transpose(1, 2).flatten(0, 1)
        prompt_BKRS = scores if self._slot_B is None else scores[self._slot_B]

        completion_BKRT = torch.matmul(query_BKRD, layer.keys.mT)
        weights = torch.cat([prompt_BKRS, completion_BKRT], -1).softmax(-1, dtype=torch.float32).to(query_BH1D.dtype)
        prompt_BKRS, completion_BKRT = weights[..., :positions], weights[..., positions:]

        out_BKRV = torch.matmul(completion_BKRT, layer.values)
        in_slots = prompt_BKRS
        if self._slot_B is not None:
            in_slots = prompt_BKRS.new_zeros(self._slots, *prompt_BKRS.shape[1:])
            in_slots[self._slot_B] = prompt_BKRS
        weights_PKGS = in_slots.view(prompts, group, kv_heads, repeats, positions).transpose(1, 2)
        outputs = torch.matmul(weights_PKGS.reshape(prompts, kv_heads, group * repeats, positions), layer.prompt_values)
        outputs = outputs.view(prompts, kv_heads, group, repeats, -1).transpose(1, 2).flatten(0, 1)
        out_BKRV += outputs if self._slot_B is None else outputs[self._slot_B]
        return out_BKRV.view(batch, 1, heads, -1)

    def find_layer(self, key: Tensor) -> SharedLayer | None:
        """The layer whose completion keys are `key`."""
        return next((layer for layer in self._layers if layer.keys is key), None)


_active: ContextVar[SharedPrompts | None] = ContextVar("active", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that transformers calls: query, key and value are [B, heads, positions, D], the output is
    [B, positions, heads, V].
    """
    shared = _active.get()
    layer = shared.find_layer(key) if shared is not None else None
    if shared is None or layer is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return shared.attend(layer, query, options.get("scaling")), None


def _mask(*args: Any, **options: Any) -> Tensor | None:
    return None if _active.get() is not None else sdpa_mask(*args, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def can_share(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether this attention can replace that of the model, and all layers of `cache` hold whole prompts."""
    config: Any = model.config.get_text_config(decoder=True)
    return (
        config._attn_implementation == "sdpa"
        and bool(getattr(model, "_supports_attention_backend", False))
        and not getattr(config, "is_encoder_decoder", False)
        and all(type(layer) is ReservedLayer and layer.is_initialized for layer in cache.layers)
    )
