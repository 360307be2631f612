"""Tiny students of architectures that vLLM runs on a CPU (head sizes of 32), with the tokenizer of the pocket world.

Their weights are large enough that their distributions are far from uniform, and far from certain.
"""

from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from vold_trainer.pocket.tokenizer import build_tokenizer

SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def _fill(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.15, generator=generator)


def save_text_student(folder: Path, seed: int = 0, *, tied: bool = False) -> Path:
    """Qwen3. tied: one matrix for embedding and output head."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        **SIZE,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=tied,
    )
    model = Qwen3ForCausalLM(config)
    _fill(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
