"""Tiny random checkpoints of the student families, in the format of the published checkpoints.

    folder = tiny_student("qwen3-vl", tmp_path / "student")
    student = load_student(StudentConfig(path=str(folder)))

Real model classes, image processors and processor settings, and a chat template like the family's; two layers, a hidden
size of 32, random weights from `seed`. Writing a checkpoint does not need torchvision. As in published checkpoints, the
families with video have video settings, which are not read without torchvision.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    GenerationConfig,
    Idefics3Config,
    LlavaConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
    SmolVLMConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from vold_trainer.pocket_building.tokenizer import CHAT_TEMPLATE as QWEN_TEMPLATE
from vold_trainer.pocket_building.tokenizer import build_tokenizer

HIDDEN = 32
PATCH = 14
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
VISION: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": 4 * PATCH,
}

_TURNS = "{% for message in messages %}"
_IMAGES = "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
_TEXTS = "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
LLAVA_TEMPLATE = (
    f"{_TURNS}{{% if message['role'] != 'system' %}}{{{{ message['role'].upper() + ': ' }}}}{{% endif %}}"
    f"{_IMAGES}{_TEXTS}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION_TEMPLATE = (
    f"{_TURNS}{{{{ '<|im_start|>' + message['role'] + ' ' }}}}{_IMAGES}{_TEXTS}{{{{ '\n' + part['text'] }}}}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_TEXT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Like Qwen3's own template, it drops content that is not a string."""


class CheckpointParts(NamedTuple):
    """The parts of a family's checkpoint. settings: of processor_config.json. video: the video processor's type, or "".
    eos: additional end tokens.
    """

    config: Any
    image_processor: Any = None
    settings: dict[str, Any] | None = None
    video: str = ""
    eos: tuple[str, ...] = ()


def tiny_student(
    family: str, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, *, seed: int = 0, **text: Any
) -> Path:
    """Write a float32 checkpoint of the family (one of FAMILIES) to `folder`. Returns the folder.

    tokenizer: with the family's special tokens and a chat template; None for a small character tokenizer.
    text: more settings of the text config. Raises KeyError for an unknown family.
    """
    build, tokens, template = _BUILDERS[family]
    tokenizer = tokenizer or _character_tokenizer(tokens, template)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    parts = build(tokenizer, TEXT | ids | text)
    auto = AutoModelForCausalLM if parts.image_processor is None else AutoModelForImageTextToText
    torch.manual_seed(seed)
    model = auto.from_config(parts.config, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            if not value.any():  # initialised to zero: a test could not see whether the model uses it
                value.normal_(0, 0.02)
    ends = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in parts.eos)]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if parts.image_processor is not None:
        parts.image_processor.save_pretrained(folder)
        _write(folder / "processor_config.json", parts.settings or {})
    if parts.video:
        _write(folder / "video_preprocessor_config.json", {"video_processor_type": parts.video})
    return folder


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _character_tokenizer(tokens: dict[str, Any], template: str) -> PreTrainedTokenizerFast:
    """The pocket world's character tokenizer with the family's special tokens added."""
    base = build_tokenizer()
    core = base.backend_tokenizer
    special = {name: token for name, token in tokens.items() if name not in ("also", "bos_first")}
    new = [*special.values(), *tokens.get("also", ())]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in new])
    if tokens.get("bos_first"):
        bos = tokens["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    defaults = {"pad_token": base.pad_token, "eos_token": base.eos_token, "unk_token": base.unk_token}
    standard = {name: token for name, token in special.items() if name in ("bos_token", "eos_token", "pad_token")}
    extra = {name: token for name, token in special.items() if name not in standard}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **(defaults | standard),
        extra_special_tokens=extra or dict(base.init_kwargs["extra_special_tokens"]),
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _vision_ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _qwen_image_processor(patch: int) -> Any:
    return Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (2 * patch) ** 2, "longest_edge": (2 * patch) ** 2 * 16},
    )


def _qwen2_5_vl(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
        "out_hidden_size": text["hidden_size"],
    }
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        tie_word_embeddings=True,
        **_vision_ids(tokenizer),
    )
    settings = {"processor_class": "Qwen2_5_VLProcessor"}
    return CheckpointParts(config, _qwen_image_processor(PATCH), settings, "Qwen2VLVideoProcessor", ("<|endoftext|>",))


def _qwen3_vl(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope, "head_dim": 16},
        vision_config=vision,
        tie_word_embeddings=True,
        **_vision_ids(tokenizer),
    )
    settings = {"processor_class": "Qwen3VLProcessor"}
    return CheckpointParts(config, _qwen_image_processor(16), settings, "Qwen3VLVideoProcessor", ("<|endoftext|>",))


def _idefics(
    config: Any, image_processor: Any, name: str, video: str
) -> Callable[[Any, dict[str, Any]], CheckpointParts]:
    """Idefics3 or SmolVLM: an image is split into squares of 56 pixels, 4 tokens each, and a small whole."""

    def build(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
        model_config = config(
            text_config={"model_type": "llama", **text},
            vision_config=VISION,
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        processor = image_processor(size={"longest_edge": 8 * PATCH}, max_image_size={"longest_edge": 4 * PATCH})
        settings = {"processor_class": name, "image_seq_len": 4}
        return CheckpointParts(model_config, processor, settings, video)

    return build


def _llava(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
    config = LlavaConfig(
        text_config={"model_type": "llama", **text},
        vision_config={"model_type": "clip_vision_model", "projection_dim": HIDDEN, **VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    side = {"height": 4 * PATCH, "width": 4 * PATCH}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 4 * PATCH}, crop_size=side)
    settings = {
        "processor_class": "LlavaProcessor",
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return CheckpointParts(config, processor, settings)


def _llava_onevision(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
    side = 4 * PATCH
    grid = [[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    processor = LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, image_grid_pinpoints=grid)
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
    }
    return CheckpointParts(config, processor, settings, "LlavaOnevisionVideoProcessor")


def _gemma3(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3Config(
        text_config=text | {"head_dim": 16, "sliding_window": 16, "layer_types": layers, "query_pre_attn_scalar": 16},
        vision_config={"vision_use_head": False, **VISION},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    processor = Gemma3ImageProcessorPil(size={"height": 4 * PATCH, "width": 4 * PATCH})
    settings = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    return CheckpointParts(config, processor, settings, eos=("<end_of_turn>",))


def _qwen3(tokenizer: Any, text: dict[str, Any]) -> CheckpointParts:
    return CheckpointParts(Qwen3Config(**text | {"head_dim": 16, "tie_word_embeddings": True}), eos=("<|endoftext|>",))


_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "also": _ROWS,
}
_LLAVA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>", "bos_first": True}
_GEMMA_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "also": ("<start_of_turn>", "<end_of_turn>"),
    "bos_first": True,
}
_BUILDERS: dict[str, tuple[Callable[[Any, dict[str, Any]], CheckpointParts], dict[str, Any], str]] = {
    "qwen2.5-vl": (_qwen2_5_vl, {}, QWEN_TEMPLATE),
    "qwen3-vl": (_qwen3_vl, {}, QWEN_TEMPLATE),
    "smolvlm": (
        _idefics(SmolVLMConfig, SmolVLMImageProcessorPil, "SmolVLMProcessor", "SmolVLMVideoProcessor"),
        _IDEFICS_TOKENS,
        IDEFICS_TEMPLATE,
    ),
    "idefics3": (
        _idefics(Idefics3Config, Idefics3ImageProcessorPil, "Idefics3Processor", ""),
        _IDEFICS_TOKENS,
        IDEFICS_TEMPLATE,
    ),
    "llava": (_llava, _LLAVA_TOKENS, LLAVA_TEMPLATE),
    "llava-onevision": (_llava_onevision, {"image_token": "<image>", "video_token": "<video>"}, ONEVISION_TEMPLATE),
    "gemma3": (_gemma3, _GEMMA_TOKENS, GEMMA_TEMPLATE),
    "qwen3": (_qwen3, {}, QWEN_TEXT_TEMPLATE),
}
FAMILIES = tuple(_BUILDERS)
VISION_FAMILIES = tuple(name for name in FAMILIES if name != "qwen3")
CONFIG_FAMILIES = {
    "vold_qwen2.5vl_3b": "qwen2.5-vl",
    "vold_qwen3vl_2b": "qwen3-vl",
    "vold_llava_onevision_7b": "llava-onevision",
    "vold_gemma3_4b": "gemma3",
    "grpo_smolvlm2_2.2b": "smolvlm",
    "vold_qwen3_1.7b": "qwen3",
}
"""The student family of each second-stage config under configs/."""
