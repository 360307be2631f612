"""Tiny students of architectures that vLLM runs on a CPU (head sizes of 32), with the tokenizer of the pocket world.

Their weights are large enough that their distributions are far from uniform, and far from certain.
"""

from pathlib import Path

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vold_trainer.pocket.tokenizer import build_tokenizer

PATCH = 14
SIDE = 4 * PATCH
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


def save_image_student(folder: Path) -> Path:
    """LLaVA."""
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        text_config={
            **SIZE,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={"model_type": "clip_vision_model", "patch_size": PATCH, "image_size": SIDE, **SIZE},
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    _fill(model, 0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
