"""The models of the pocket world: architectures of transformers at toy size."""

from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from vold_packing.transformers import undocumented

from vold_trainer.pocket.pictures import CELL
from vold_trainer.pocket_building import tokenizer as tokens
from vold_trainer.student.processors import ImageTextProcessor

with undocumented():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MAX_POSITIONS = 512


def build_processor(tokenizer: PreTrainedTokenizerFast) -> ImageTextProcessor:
    """The student's processor: pictures keep their size, since every side is a multiple of a cell."""
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=CELL // 2,
        merge_size=2,
        temporal_patch_size=1,
        size={"shortest_edge": CELL**2, "longest_edge": CELL**2 * 256},
    )
    return ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def build_teacher(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained teacher of 0.6 M parameters, float32."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            **_special_ids(tokenizer),
        )
    )


def build_student(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained student of 0.6 M parameters with a vision tower of one layer, float32."""
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": MAX_POSITIONS,
        # Half of the 32 dimensions of a head: 4 frequencies for time, 6 for rows, 6 for columns.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        **_special_ids(tokenizer),
    }
    vision = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": CELL // 2,
        "temporal_patch_size": 1,
        "fullatt_block_indexes": [0],
        "out_hidden_size": 96,
    }
    ids: dict[str, Any] = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image_token_id", tokens.IMAGE),
            ("video_token_id", tokens.VIDEO),
            ("vision_start_token_id", tokens.VISION_START),
            ("vision_end_token_id", tokens.VISION_END),
        )
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **ids, **_special_ids(tokenizer)
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
