"""How much memory a run will take, counted before anything is loaded.

Weights, gradients and AdamW's moments are exact. Activations are what a decoder layer keeps for its backward pass,
counted for a gated feed-forward layer and fused attention: an estimate, about right for the families that docs name.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGITS_BYTES = 256 << 20
"""Of one chunk of logits in float32, at most; about three of them exist at once."""


@dataclass(frozen=True)
class Model:
    """parameters, learning: how many values there are, and how many of them learn. bytes: of one. The rest describes
    the language model.
    """

    parameters: int
    learning: int
    bytes: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    vocabulary: int

    @classmethod
    def of(cls, model: nn.Module, text_config: Any, dtype: str) -> "Model":
        """model: any, tensors on the meta device included. text_config: of its language model."""
        heads = text_config.num_attention_heads
        head = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        return cls(
            parameters=sum(value.numel() for value in model.parameters()),
            learning=sum(value.numel() for value in model.parameters() if value.requires_grad),
            bytes=BYTES[dtype],
            layers=text_config.num_hidden_layers,
            hidden=text_config.hidden_size,
            intermediate=text_config.intermediate_size,
            kv_width=(getattr(text_config, "num_key_value_heads", None) or heads) * head,
            vocabulary=text_config.vocab_size,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes. activations: of one micro-batch. cache: keys and values of the sequences drawn together."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    cache: int

    @property
    def drawing(self) -> int:
        """The most while completions are drawn."""
        return self.weights + self.moments + self.cache

    @property
    def learning(self) -> int:
        """The most while the student learns."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits

    @property
    def peak(self) -> int:
        return max(self.drawing, self.learning)


def estimate(model: Model, *, tokens: int, micro: int, together: int, checkpointing: bool) -> Memory:
    """tokens: of a prompt and its completion at most. micro: sequences in one pass. together: drawn at the same time.
    checkpointing: activations are computed twice.
    """
    rows = tokens * micro
    layer = rows * (8 * model.hidden + 2 * model.kv_width + 4 * model.intermediate) * model.bytes
    kept = model.layers * rows * model.hidden * model.bytes + layer if checkpointing else model.layers * layer
    return Memory(
        weights=model.parameters * model.bytes,
        gradients=model.learning * model.bytes,
        moments=2 * model.learning * model.bytes,
        activations=kept,
        logits=3 * min(LOGITS_BYTES, 4 * rows * model.vocabulary),
        cache=2 * model.layers * together * tokens * model.kv_width * model.bytes,
    )


def available() -> tuple[int, str]:
    """(bytes, what of): of the GPU where there is one, else of the machine's memory."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free, torch.cuda.get_device_name()
    with open("/proc/meminfo") as lines:
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kilobytes << 10, "this machine, free now"


def size(count: float) -> str:
    """1536 << 20 as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
