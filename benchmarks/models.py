"""Teachers of several sizes with random weights, which do not change the speed.

Heads have 32 dimensions, which vLLM's CPU build supports.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend


@dataclass(frozen=True)
class Size:
    vocab: int
    hidden: int
    layers: int
    heads: int
    experts: int = 0


SIZES = {
    "sparse": Size(512, 64, 2, 2, experts=32),
    "deep": Size(512, 128, 4, 4),
    "tiny": Size(4096, 128, 2, 4),
    "40M": Size(8192, 512, 10, 16),
    "wide": Size(152_064, 64, 1, 2),
}
"""sparse, deep and tiny have about 1 M parameters. sparse: a mixture with one active expert per token, so that the
service's own cost dominates. deep: at most a tenth of the compute is the output head, as in teachers with billions of
parameters. tiny: half of the compute is the output head. 40M: the forward pass dominates. wide: a large vocabulary.
"""


def save(name: str, folder: Path) -> tuple[Path, int]:
    """Save a model of that size. Returns its folder and its number of parameters."""
    size = SIZES[name]
    torch.manual_seed(0)
    options = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
    }
    if size.experts:
        experts = {"num_experts": size.experts, "num_experts_per_tok": 1, "moe_intermediate_size": size.hidden}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**options, **experts))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**options))
    path = folder / name
    model.save_pretrained(path)
    vocabulary = {f"t{index}": index for index in range(size.vocab)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), eos_token="t1"
    )
    tokenizer.save_pretrained(path)
    return path, sum(parameter.numel() for parameter in model.parameters())


def torch_backend(name: str) -> TorchBackend:
    """The teacher's torch backend in this process, with a model of that size."""
    with tempfile.TemporaryDirectory() as folder:
        path, _ = save(name, Path(folder))
        return TorchBackend(path, limits=DecoderLimits())
