"""An estimate of the memory that a training run takes, from the sizes of the model.

Weights, gradients and AdamW's moments are exact. Activations are the tensors that a decoder layer saves for its
backward pass, counted for a gated feed-forward layer and fused attention: an estimate.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGITS_BYTES = 256 << 20
"""The maximum size of one chunk of logits in float32; about three chunks exist at once."""


@dataclass(frozen=True)
class ModelSize:
    """parameters, trainable: how many values the model has, and how many of them are trainable. bytes: of one value.
    The other fields are sizes of the language model.
    """

    parameters: int
    trainable: int
    bytes: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    vocabulary: int

    @classmethod
    def of(cls, model: nn.Module, text_config: Any, dtype: str) -> "ModelSize":
        """model: its tensors may be on the meta device. text_config: the config of its language model."""
        heads = text_config.num_attention_heads
        head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        return cls(
            parameters=sum(value.numel() for value in model.parameters()),
            trainable=sum(value.numel() for value in model.parameters() if value.requires_grad),
            bytes=BYTES[dtype],
            layers=text_config.num_hidden_layers,
            hidden=text_config.hidden_size,
            intermediate=text_config.intermediate_size,
            kv_width=(getattr(text_config, "num_key_value_heads", None) or heads) * head_dim,
            vocabulary=text_config.vocab_size,
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. activations: of one micro-batch. cache: keys and values of the sequences generated together."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    cache: int

    @property
    def generation(self) -> int:
        """The peak during generation."""
        return self.weights + self.moments + self.cache

    @property
    def update(self) -> int:
        """The peak during a policy update."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits

    @property
    def peak(self) -> int:
        return max(self.generation, self.update)


def estimate_memory(
    model: ModelSize, *, tokens: int, micro_batch: int, generation_batch: int, checkpointing: bool
) -> MemoryEstimate:
    """tokens: the maximum length of a prompt and its completion. micro_batch: sequences in one forward pass.
    generation_batch: sequences generated at the same time. checkpointing: activations are recomputed.
    """
    rows = tokens * micro_batch
    layer = rows * (8 * model.hidden + 2 * model.kv_width + 4 * model.intermediate) * model.bytes
    activations = model.layers * rows * model.hidden * model.bytes + layer if checkpointing else model.layers * layer
    return MemoryEstimate(
        weights=model.parameters * model.bytes,
        gradients=model.trainable * model.bytes,
        moments=2 * model.trainable * model.bytes,
        activations=activations,
        logits=3 * min(LOGITS_BYTES, 4 * rows * model.vocabulary),
        cache=2 * model.layers * generation_batch * tokens * model.kv_width * model.bytes,
    )


def available_memory() -> tuple[int, str]:
    """(free bytes, description): of the GPU if there is one, else of the machine."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free, torch.cuda.get_device_name()
    with open("/proc/meminfo") as lines:
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kilobytes << 10, "this machine, free now"


def format_bytes(count: float) -> str:
    """1536 << 20 as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
