"""An estimate of the memory that a training run takes, from the sizes of the model.

Weights, gradients and AdamW's moments are exact. The other parts are the tensors that `vold_trainer.student` and the
operations of torch allocate, derived in the functions below for a gated feed-forward layer and fused attention; tests
compare them with what torch allocates. Not counted: the vision tower's activations, what the allocator of the device
loses to fragmentation, and the device's own context.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vold_trainer.processes.gradients import IMAGE_PARTS
from vold_trainer.student import logprobs
from vold_trainer.student.parts import parameter_parts

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """parameters: how many values the model has. bytes: of one value. compute_bytes: of one value of a matrix product,
    head_bytes: of one of the output head's.
    trainable_bytes, image_bytes: of all trainable values, and of those of vision and projector. largest_bytes: of the
    largest trainable parameter. matrices: trainable values of the decoder's linear layers. head_trainable: whether the
    output head is. qk_norm: whether queries and keys are normalized. The other fields are sizes of the language model.
    """

    parameters: int
    bytes: int
    compute_bytes: int
    head_bytes: int
    trainable_bytes: int
    image_bytes: int
    largest_bytes: int
    matrices: int
    head_trainable: bool
    qk_norm: bool
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_width: int
    vocabulary: int

    @classmethod
    def of(
        cls, model: Any, text_config: Any, dtype: str, compute: str | None = None, head: str | None = None
    ) -> "ModelSize":
        """model: its tensors may be on the meta device. text_config: the config of its language model."""
        heads = text_config.num_attention_heads
        head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        parts = parameter_parts(model)
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        return cls(
            parameters=sum(value.numel() for value in model.parameters()),
            bytes=BYTES[dtype],
            compute_bytes=BYTES[compute or dtype],
            head_bytes=BYTES[head or compute or dtype],
            trainable_bytes=sum(value.nbytes for value in trainable.values()),  # adapters are float32
            image_bytes=sum(value.nbytes for name, value in trainable.items() if parts[name] in IMAGE_PARTS),
            largest_bytes=max((value.nbytes for value in trainable.values()), default=0),
            matrices=sum(trainable[name].numel() for name in linear & set(trainable) if parts[name] == "language"),
            head_trainable=model.get_output_embeddings().weight.requires_grad,
            qk_norm=any(name.endswith("q_norm") for name, _ in model.named_modules()),
            layers=text_config.num_hidden_layers,
            hidden=text_config.hidden_size,
            intermediate=text_config.intermediate_size,
            heads=heads,
            kv_width=(getattr(text_config, "num_key_value_heads", None) or heads) * head_dim,
            vocabulary=text_config.vocab_size,
        )

    @property
    def casts(self) -> bool:
        """Whether matrix products have another dtype than the weights (autocast)."""
        return self.compute_bytes != self.bytes

    @property
    def casts_head(self) -> bool:
        """Whether the output head's product has another dtype than its weights."""
        return self.head_bytes != self.bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. gradients: with what DDP's buckets add to them. buckets: of them, what stays while completions are
    generated. activations: of one micro-batch. logits: and the head's gradients. casts, generation_casts: of weights to
    the dtype of matrix products, in a micro-batch and in a decoding step. cache: keys and values of the sequences
    generated together. decoding: what a decoding step allocates besides. temporaries: of the optimizer's step.
    reference: a copy of the trainable weights as they were at the start.
    """

    weights: int
    gradients: int
    buckets: int
    moments: int
    activations: int
    logits: int
    casts: int
    generation_casts: int
    cache: int
    decoding: int
    temporaries: int
    reference: int = 0

    @property
    def held(self) -> int:
        """What is there throughout the run."""
        return self.weights + self.moments + self.reference

    @property
    def generation(self) -> int:
        """The peak during generation."""
        return self.held + self.buckets + self.generation_casts + self.cache + self.decoding

    @property
    def micro_batch(self) -> int:
        """The peak during the forward and backward pass of a micro-batch."""
        return self.held + self.gradients + self.activations + self.logits + self.casts

    @property
    def step(self) -> int:
        """The peak during the optimizer's step."""
        return self.held + self.gradients + self.temporaries

    @property
    def update(self) -> int:
        """The peak during a policy update."""
        return max(self.micro_batch, self.step)

    @property
    def peak(self) -> int:
        return max(self.generation, self.update)


def estimate_memory(
    model: ModelSize,
    *,
    tokens: int,
    micro_batch: int,
    generation_batch: int,
    checkpointing: bool,
    prompt: int = 0,
    group: int = 1,
    processes: int = 1,
    fused: bool = False,
    reference: bool = False,
) -> MemoryEstimate:
    """tokens: the maximum length of a prompt and its completion. micro_batch: sequences in one forward pass.
    generation_batch: sequences generated at the same time; 0 if another engine generates. checkpointing: activations
    are recomputed. prompt: of `tokens`, those whose keys and values the completions of a `group` share. processes:
    under DDP. fused: the optimizer is. reference: the weights of the start are kept.
    """
    gradients, rows = model.trainable_bytes, tokens * micro_batch
    logits, casts, layer = logit_bytes(model, rows), cast_bytes(model), layer_bytes(model, rows)
    activations = activation_bytes(model, rows, checkpointing=checkpointing)
    if checkpointing:
        # One after the other: the casts of the forward pass, the logits, and each layer that is recomputed.
        logits, casts, layer = (value if value == max(logits, casts, layer) else 0 for value in (logits, casts, layer))
        activations += layer
    return MemoryEstimate(
        weights=model.parameters * model.bytes,
        # Vision and projector have gradients besides their buckets: processes/gradients.py.
        gradients=gradients + (model.image_bytes if processes > 1 else 0),
        buckets=gradients if processes > 1 else 0,
        moments=2 * gradients,
        activations=activations,
        logits=logits,
        casts=casts,
        generation_casts=cast_bytes(model, head=True) if generation_batch else 0,
        cache=cache_bytes(model, tokens, generation_batch, prompt, group),
        decoding=decoding_bytes(model, tokens, generation_batch),
        # sqrt(v) and sqrt(v) / correction of one parameter after the other (torch/optim/adam.py, _single_tensor_adam).
        temporaries=0 if fused else 2 * model.largest_bytes,
        reference=model.trainable_bytes if reference else 0,
    )


def activation_bytes(model: ModelSize, rows: int, *, checkpointing: bool) -> int:
    """What autograd stores of `rows` positions in the decoder until the backward pass begins.

    With checkpointing each layer stores its input alone. The last norm stores as the norms of a layer, and the head its
    input.
    """
    layer = model.hidden * model.bytes if checkpointing else _saved_by_layer(model)
    return rows * (model.layers * layer + _saved_by_norm(model) + model.hidden * model.compute_bytes)


def layer_bytes(model: ModelSize, rows: int) -> int:
    """What the backward pass of a checkpointed layer allocates: the recomputed activations; the gradients of gate, up
    and their product; and the gradient of the largest matrix before it is added, with autocast in the dtype of matrix
    products too.
    """
    matrix = model.hidden * model.intermediate * (model.bytes + (model.compute_bytes if model.casts else 0))
    return rows * (_saved_by_layer(model) + 3 * model.intermediate * model.compute_bytes) + matrix


def _saved_by_layer(model: ModelSize) -> int:
    """What autograd saves of a layer, by position: the values of two norms; the inputs of the linear layers behind
    them; normalized queries and keys, if there are any; queries, keys, values and output of the attention; of the
    feed-forward layer gate, silu(gate), up and their product. Values behind a linear layer have the dtype of matrix
    products.
    """
    b, hidden = model.compute_bytes, model.hidden
    saved = 2 * _saved_by_norm(model) + 2 * hidden * b + (2 * hidden + 2 * model.kv_width) * b
    saved += 4 * model.intermediate * b
    return saved + ((hidden + model.kv_width) * (4 + b) if model.qk_norm else 0)


def _saved_by_norm(model: ModelSize) -> int:
    """By position: the input in float32, and the normalized value."""
    return model.hidden * (4 + model.bytes)


def logit_bytes(model: ModelSize, rows: int) -> int:
    """The peak beside the activations when the backward pass of the first chunk of logits runs (student/logprobs.py).

    Five float32 tensors of a chunk: the logits, the gradients of log-normalizer and of the sampled ids, their sum, and
    the product with the temperature. Then the head's gradient: in float32, before that in the dtype of matrix products
    if that is another, beside two tensors of the chunk; with several chunks their sum stays until the last. The
    entropy's gradient (objective.entropy_bonus) comes before that of the log-probabilities, in the same five.
    """
    largest = logprobs.chunk_bytes(_device())
    chunk = min(largest, 4 * rows * model.vocabulary)
    head = model.vocabulary * model.hidden
    cast = head * model.head_bytes if model.casts_head else 0
    if not model.head_trainable:
        return 5 * chunk + cast
    several = rows > logprobs.chunk_size(model.vocabulary, largest)
    new = head * model.bytes + cast
    return cast + (head * model.bytes if several else 0) + max(5 * chunk, 2 * chunk + new)


def cast_bytes(model: ModelSize, *, head: bool = False) -> int:
    """Autocast's copies of the weights: it stores the cast of each trainable weight until the call of the whole model
    ends, and autograd until the backward pass (torch, aten/src/ATen/autocast_mode.cpp, `cached_cast`). head: with that
    of the output head, which a decoding step calls inside the model.
    """
    matrices = model.matrices * model.compute_bytes if model.casts else 0
    if not (head and model.casts_head and model.head_trainable):
        return matrices
    return matrices + model.vocabulary * model.hidden * model.head_bytes


def cache_bytes(model: ModelSize, tokens: int, batch: int, prompt: int = 0, group: int = 1) -> int:
    """Keys and values of `batch` sequences, in the dtype of the products; a group shares those of its prompt
    (student/shared_prompts.py, student/cache.py).
    """
    positions = batch * (tokens - prompt) + math.ceil(batch / group) * prompt
    return 2 * model.layers * positions * model.kv_width * model.compute_bytes


def decoding_bytes(model: ModelSize, tokens: int, batch: int) -> int:
    """What a decoding step allocates beside cache and casts: the scores of a layer's attention, in the dtype of matrix
    products, in float32, joined and split; and the logits of the next token, in float32 about six times while it is
    sampled.
    """
    scores = batch * model.heads * tokens * (4 + 4 * model.compute_bytes)
    return scores + 6 * 4 * batch * model.vocabulary


def _device() -> torch.device:
    """Where a run on this machine trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
