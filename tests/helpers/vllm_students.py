"""Tiny students of architectures that vLLM runs on a CPU (head sizes of 32), with the tokenizer of the pocket world.

Their weights are large enough that their distributions are far from uniform, and far from certain.
"""

from pathlib import Path

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from vold_trainer.pocket_building.tokenizer import build_tokenizer

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
    """Idefics3, each picture as it is: 4 tokens, no tiles."""
    tokenizer = build_tokenizer()
    place = "<image>"
    also = [place, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": also})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|vision_start|><|image_pad|><|vision_end|>", place)
    config = Idefics3Config(
        text_config={
            **SIZE,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={"patch_size": PATCH, "image_size": SIDE, **SIZE},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids(place),
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration(config)
    _fill(model, 0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    Idefics3Processor(
        Idefics3ImageProcessorPil(
            do_image_splitting=False, size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
