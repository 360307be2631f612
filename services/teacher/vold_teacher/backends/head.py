"""The output head of a causal model: hidden states to logits, and how many rows of logits to hold at once."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from vold_packing.transformers import undocumented

from vold_teacher.scoring import chunk_rows

with undocumented():
    from transformers.modeling_outputs import MoeModelOutputWithPast

# A chunk of logits has at least MIN_ROWS rows, to pay for reading the head: with a vocabulary of 152k and a hidden size
# of 896, chunks of 128 rows take a fifth less time per row than chunks of 64.
MIN_ROWS = 128


class _PassThrough(nn.Module):
    """Takes the place of a causal model's decoder: returns its input embeddings as hidden states."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # a mixture of experts reads router_logits


class OutputHead:
    """Hidden states to logits, by the model's own `forward` without its decoder.

    So softcapping (Gemma), scaling (Cohere, Granite) and biases are the model's own code, not a copy. `check` compares
    the head with the whole model once.
    """

    def __init__(self, model: Any) -> None:
        self._model = copy.copy(model)
        self._model._modules = dict(model._modules)
        self._model._modules[model.base_model_prefix] = _PassThrough()

    def __call__(self, hidden_RH: Tensor) -> Tensor:
        """[R, H] to [R, V]."""
        return self._model(inputs_embeds=hidden_RH[None], use_cache=False).logits[0]

    def check(self, model: Any) -> None:
        """Raise OSError if the decoder and then the head give other logits than the whole model."""
        ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        whole = model(input_ids=ids, use_cache=False).logits[0]
        if not torch.allclose(self(hidden[0]), whole, rtol=1e-2, atol=1e-3):
            raise OSError(
                f"{type(model).__name__} computes its logits in a way that cannot be split from its decoder: "
                "serve a model of another architecture"
            )


def head_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of one chunk of logits. On a CPU 8 MiB of them in float32: they are read several times and should stay in
    the caches.
    """
    if device.type != "cuda":
        return max(chunk_rows(vocab_size, 1 << 21), MIN_ROWS)
    return gpu_head_rows(vocab_size, torch.cuda.get_device_properties(device).total_memory)


def gpu_head_rows(vocab_size: int, memory: int) -> int:
    """Rows of one chunk of logits on a GPU with that many bytes: a 256th of them in float32, but at least 64 MiB and at
    most 1 GiB. A multiple of MIN_ROWS, so that no tile of the head's product is partly empty. Scoring takes about four
    times the memory of a chunk.
    """
    rows = chunk_rows(vocab_size, min(max(memory >> 8, 1 << 26), 1 << 30) // 4)
    return max(rows // MIN_ROWS, 1) * MIN_ROWS
