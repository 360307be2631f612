"""Tiny teachers of real architectures with random weights, and `vold-teacher serve` as a process."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from servers import started
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<user>", "<assistant>"]
CHARACTERS = [chr(code) for code in range(32, 127)]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{% else %}<assistant>{% endif %}{{ m.content }}<eos>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCAB = 120  # more rows than the tokenizer has ids, as padded heads have


def save_tokenizer(folder: Path) -> None:
    vocabulary = {token: index for index, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_model(family: str, seed: int = 0, head_dim: int = 16) -> PreTrainedModel:
    """A float32 model whose weights are large enough that its distributions are far from uniform.

    head_dim: vLLM on a CPU needs 32 or 64.
    """
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": 2,
    }
    if family == "qwen3":
        model: PreTrainedModel = Qwen3ForCausalLM(Qwen3Config(**common))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    elif family == "gemma2":  # soft-capped logits and attention, and sliding windows in every other layer
        model = Gemma2ForCausalLM(
            Gemma2Config(
                **common,
                final_logit_softcapping=5.0,
                sliding_window=8,
                query_pre_attn_scalar=16,
                attn_implementation="eager",  # sdpa knows no soft-capping, which not every transformers says
            )
        )
    elif family == "qwen3-moe":
        model = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**common, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
        )
    else:
        raise ValueError(family)
    return model.eval()


def save_model(folder: Path, family: str = "qwen3", seed: int = 0, head_dim: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    make_model(family, seed, head_dim).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@dataclass(frozen=True)
class Server:
    http: str | None
    grpc: str | None
    process: subprocess.Popen[str]


@contextmanager
def teacher_server(
    model: Path,
    *options: str,
    http: str = "127.0.0.1:0",
    grpc: str = "127.0.0.1:0",
    log: IO[str] | None = None,
) -> Iterator[Server]:
    """`python -m vold_teacher serve` on free ports, ready; SIGTERM at the end. log: where its log goes."""
    arguments = ["--model", str(model), "--http", http, "--grpc", grpc, "--threads", "1", "--log-level", "warning"]
    with started("teacher", *arguments, *options, stderr=log, environment={"OMP_NUM_THREADS": "1"}) as (process, ready):
        try:
            yield Server(ready["http"], ready["grpc"], process)
        finally:
            process.terminate()
            process.wait(30)
