"""Models of the real shapes with random weights, made on the device: Qwen3-8B and Qwen2.5-VL-3B, and tiny ones.

The weights are drawn as transformers initialises a model for training (normal, standard deviation 0.02; norms 1), so
that activations and logits have the size that arithmetic in bfloat16 is made for. The shapes are those of the published
config.json files. The tokenizers have as many ids as the models.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen3Config

QWEN3_8B = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
QWEN2_5_VL_3B = {
    "text": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 2048,
    },
}
TINY_TEXT = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Shapes:
    """teacher: of Qwen3Config. text, vision: of Qwen2_5_VLConfig."""

    teacher: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]


SHAPES = {
    "real": Shapes(QWEN3_8B, QWEN2_5_VL_3B["text"], QWEN2_5_VL_3B["vision"]),
    "tiny": Shapes(
        TINY_TEXT | {"head_dim": 16, "tie_word_embeddings": False},
        TINY_TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
    ),
}
NO_EOS = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
"""Random completions run to their last token."""


def random_model(auto: Any, config: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model of the config with weights drawn on the device; the same seed on the same device gives the same."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype)
    return model.to(device).eval()


def teacher_config(size: str) -> Qwen3Config:
    return Qwen3Config(**SHAPES[size].teacher, **NO_EOS)


def teacher_model(size: str, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """bfloat16 on a GPU, float32 on a CPU, as the service would load it."""
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    return random_model(AutoModelForCausalLM, teacher_config(size), device, dtype)


def teacher_folder(size: str, folder: Path) -> Path:
    """A folder with config and tokenizer, and a file of weights that holds none: the weights are in memory."""
    config = teacher_config(size)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    save_tokenizer(folder, config.vocab_size)
    save_file({"random": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def save_tokenizer(folder: Path, vocab_size: int) -> Any:
    """Save and return the pocket world's tokenizer with as many more words as the model has ids. ids: every one is a
    token, so that teacher and student mean the same by it.
    """
    from transformers import AutoTokenizer
    from vold_trainer.pocket_building.tokenizer import build_tokenizer

    build_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"\uf8ff{index}": index for index in range(len(vocabulary), vocab_size)}
    file.write_text(json.dumps(state))
    return AutoTokenizer.from_pretrained(folder)


def student_config(size: str, tokenizer: Any) -> Qwen2_5_VLConfig:
    shapes = SHAPES[size]
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen2_5_VLConfig(
        text_config=shapes.text | ends, vision_config=shapes.vision, tie_word_embeddings=True, **ids
    )


def student_model(size: str, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return random_model(AutoModelForImageTextToText, student_config(size, tokenizer), device, dtype)


def student_folder(size: str, folder: Path) -> tuple[Any, Any]:
    """Save tokenizer and image processor; returns (processor, tokenizer)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from vold_trainer.student.processors import load_processor

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder, SHAPES[size].text["vocab_size"])
    patch = SHAPES[size].vision["patch_size"]
    limits = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 1280 * (2 * patch) ** 2}
    Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2, size=limits).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen2VLVideoProcessor"})
    )
    student_config(size, tokenizer).save_pretrained(folder)
    processor = load_processor(str(folder), trust_remote_code=False)
    return processor, processor.tokenizer
