"""Attention of sequences that are decoded from shared prompts, whose keys and values are kept once for all of them.

A decoding step reads all keys and values of every sequence for one new token, so that reading them is most of its
time, and holding them most of its memory. Those of a prompt are the same for its whole group: they are held and read
once, and what a new token finds in the prompt and in its own completion meets in one softmax.

Shapes: P prompts, B sequences, G the most of them that have one prompt, K key-value heads, R query heads to each of
these, S prompt positions, T completion positions, D values of a head, V those of a value.
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
"""The name by which transformers knows this attention. Where no prompts are shared, it is plain sdpa."""


class SharedLayer(ReservedLayer):
    """Keys and values of completions, which follow those of prompts."""

    def __init__(self, prompts: ReservedLayer, tokens: int) -> None:
        super().__init__(tokens)
        self.prompt_keys: Tensor = prompts.keys
        self.prompt_values: Tensor = prompts.values

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[-2] + self.held


class SharedPrompts:
    """Which prompt each sequence of a cache follows."""

    def __init__(self, cache: Any, prompt_B: Tensor, mask_PS: Tensor, tokens: int) -> None:
        """cache: of the prompts alone; it becomes that of the sequences. mask_PS: 1 where there is a prompt, 0 where
        it is padded. tokens: how many may follow at most.
        """
        self._layers = [SharedLayer(layer, tokens) for layer in cache.layers]
        cache.layers = list(self._layers)
        self._prompt_B = prompt_B
        padding_P1S = mask_PS.unsqueeze(1) == 0
        self._mask_P1S = torch.zeros_like(padding_P1S, dtype=torch.float32).masked_fill(padding_P1S, -torch.inf)
        self._answered = 0
        self._arrange()

    def keep(self, sequences: Tensor) -> None:
        """Go on with these sequences; prompts that no sequence follows are dropped."""
        for layer in self._layers:
            layer.reorder_cache(sequences)
        prompts, self._prompt_B = self._prompt_B[sequences].unique(return_inverse=True)
        if len(prompts) < len(self._mask_P1S):
            self._mask_P1S = self._mask_P1S[prompts]
            for layer in self._layers:
                layer.prompt_keys, layer.prompt_values = layer.prompt_keys[prompts], layer.prompt_values[prompts]
        self._arrange()

    def _arrange(self) -> None:
        """Every sequence has a slot, of as many as there are prompts times the largest group."""
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
    def attended(self, model: PreTrainedModel) -> Iterator[None]:
        """While the model is given one token a sequence.

        Raises RunError where its layers do not look at this cache as those of transformers do.
        """
        config: Any = model.config.get_text_config(decoder=True)
        usual, token, self._answered = config._attn_implementation, _shared.set(self), 0
        config._attn_implementation = ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = usual
            _shared.reset(token)
        if self._answered != len(self._layers):
            raise RunError(
                f"{type(model).__name__}: {len(self._layers)} layers keep keys and values, {self._answered} looked at "
                'them through transformers\' attention interface. Load it with another attention than "sdpa"'
            )

    def attention(self, layer: SharedLayer, query_BH1D: Tensor, scale: float | None) -> Tensor:
        """What the new token of each sequence finds, [B, 1, H, V]."""
        self._answered += 1
        batch, heads, _, size = query_BH1D.shape
        prompts, kv_heads, positions, _ = layer.prompt_keys.shape
        each, group = heads // kv_heads, self._group
        query_BKRD = (query_BH1D * (size**-0.5 if scale is None else scale)).view(batch, kv_heads, each, size)

        in_slots = query_BKRD
        if self._slot_B is not None:
            in_slots = query_BKRD.new_zeros(self._slots, kv_heads, each, size)
            in_slots[self._slot_B] = query_BKRD
        query_PKGD = in_slots.view(prompts, group, kv_heads, each, size).transpose(1, 2)
        found = torch.matmul(query_PKGD.reshape(prompts, kv_heads, group * each, size), layer.prompt_keys.mT)
        found += self._mask_P1S.unsqueeze(1).to(found.dtype)
        found = found.view(prompts, kv_heads, group, each, positions).transpose(1, 2).flatten(0, 1)
        prompt_BKRS = found if self._slot_B is None else found[self._slot_B]

        own_BKRT = torch.matmul(query_BKRD, layer.keys.mT)
        weights = torch.cat([prompt_BKRS, own_BKRT], -1).softmax(-1, dtype=torch.float32).to(query_BH1D.dtype)
        prompt_BKRS, own_BKRT = weights[..., :positions], weights[..., positions:]

        out_BKRV = torch.matmul(own_BKRT, layer.values)
        in_slots = prompt_BKRS
        if self._slot_B is not None:
            in_slots = prompt_BKRS.new_zeros(self._slots, *prompt_BKRS.shape[1:])
            in_slots[self._slot_B] = prompt_BKRS
        weights_PKGS = in_slots.view(prompts, group, kv_heads, each, positions).transpose(1, 2)
        found = torch.matmul(weights_PKGS.reshape(prompts, kv_heads, group * each, positions), layer.prompt_values)
        found = found.view(prompts, kv_heads, group, each, -1).transpose(1, 2).flatten(0, 1)
        out_BKRV += found if self._slot_B is None else found[self._slot_B]
        return out_BKRV.view(batch, 1, heads, -1)

    def layer_of(self, key: Tensor) -> SharedLayer | None:
        """The layer whose completions' keys these are."""
        return next((layer for layer in self._layers if layer.keys is key), None)


_shared: ContextVar[SharedPrompts | None] = ContextVar("shared", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention: [B, heads, positions, D] each, keys and values with their own number of heads;
    [B, positions, heads, V] back.
    """
    shared = _shared.get()
    layer = shared.layer_of(key) if shared is not None else None
    if shared is None or layer is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return shared.attention(layer, query, options.get("scaling")), None


def _mask(*args: Any, **options: Any) -> Tensor | None:
    return None if _shared.get() is not None else sdpa_mask(*args, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def can_share(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether the model's attention may be replaced by this one, and `cache` holds whole prompts in all its layers."""
    config: Any = model.config.get_text_config(decoder=True)
    return (
        config._attn_implementation == "sdpa"
        and bool(getattr(model, "_supports_attention_backend", False))
        and not getattr(config, "is_encoder_decoder", False)
        and all(type(layer) is ReservedLayer and layer.is_initialized for layer in cache.layers)
    )
