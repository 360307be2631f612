"""Students: any transformers vision-language or text model, its processor, and what of it learns.

Shapes: B sequences, S positions of prompt and completion together, T completion positions, H hidden size.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.logprobs import TokenScores, token_logprobs
from vold_trainer.processors import load_processor

log = logging.getLogger("vold.models")
transformers_logging.disable_progress_bar()  # a bar for each file read or written would drown our own

PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("visual.", "vision_tower.", "vision_model.", "vision_encoder."),
    "projector": ("multi_modal_projector.", "visual.merger.", "connector.", "mm_projector."),
}
"""What the parameters of each part are called across model families. A projector is never part of the tower."""


@dataclass
class Student:
    """A model with what turns messages into its inputs. `processor` is a tokenizer where the model reads text only."""

    model: PreTrainedModel
    processor: Any
    tokenizer: Any
    path: str

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, padding included."""
        embeddings: Any = self.model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a completion, the usual one first."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        for item in configured if isinstance(configured, list) else [configured]:
            if item is not None and item not in ids:
                ids.append(item)
        return ids

    @property
    def place_ids(self) -> list[int]:
        """Ids that stand for an image or a video in a prompt. In a completion they would have no picture."""
        config = self.model.config
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        return sorted({getattr(config, name) for name in names if getattr(config, name, None) is not None})

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0]

    def render(self, example: Example) -> str:
        """The prompt as the student's chat template writes it, up to where the answer begins."""
        text: str = self.processor.apply_chat_template(
            list(example.messages), tokenize=False, add_generation_prompt=True
        )
        return text

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Model inputs of the prompts, padded on the left: input_ids and attention_mask [B, S] and, where there
        are images, what the processor makes of them.

        Raises UsageError where an example has images and the student reads text only.
        """
        texts = [self.render(example) for example in examples]
        images = [image for example in examples for image in example.images]
        padding: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if not images:
            return dict(self.tokenizer(texts, add_special_tokens=False, return_token_type_ids=False, **padding))
        if self.processor is self.tokenizer:
            raise UsageError(f"student {self.path!r} reads text only, but example {examples[0].id!r} has an image")
        return dict(self.processor(text=texts, images=images, **padding))

    def prompt_ids(self, examples: Sequence[Example]) -> list[list[int]]:
        """The token ids of each prompt, image places included, without padding."""
        inputs = self.encode(examples)
        return [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]

    def save(self, folder: Path) -> None:
        """An ordinary transformers folder that `from_pretrained` loads."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.processor is not self.tokenizer:
            self.tokenizer.save_pretrained(folder)


def resolve_model(path: str) -> str:
    """A folder or hub name; `pocket:NAME` becomes the folder of a checkpoint that ships with vold."""
    if path.startswith("pocket:"):
        from vold_trainer.pocket.models import checkpoint_path

        name = path.removeprefix("pocket:")
        try:
            return str(checkpoint_path(name))
        except (KeyError, FileNotFoundError, ValueError) as error:
            raise UsageError(f"model {path!r}: there is no pocket checkpoint {name!r} ({error})") from error
    return path


def load_student(config: StudentConfig) -> Student:
    """The student as an image-text model, or as a text model where it is none. On the CPU; accelerate moves it.

    Raises UsageError that names the path where nothing can be loaded from it.
    """
    path = resolve_model(config.path)
    looks_local = path.startswith((".", "/")) or Path(path).exists()
    if looks_local and not (Path(path) / "config.json").is_file():
        raise UsageError(f"student.path {config.path!r} is no model folder: there is no config.json in it")
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    try:
        model_config = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise UsageError(f"student.path {config.path!r} cannot be loaded: {error}") from error
    options |= {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    auto = AutoModelForImageTextToText if _reads_images(model_config) else AutoModelForCausalLM
    try:
        model = auto.from_pretrained(path, **options)
        if auto is AutoModelForImageTextToText:
            processor = load_processor(path, trust_remote_code=config.trust_remote_code)
            tokenizer = processor.tokenizer
        else:
            processor = tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"student.path {config.path!r} cannot be loaded: {error}") from error
    freeze(model, config.freeze)
    if config.checkpoint_activations:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Student(model, processor, tokenizer, config.path)


def _reads_images(model_config: Any) -> bool:
    return type(model_config) in AutoModelForImageTextToText._model_mapping


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> int:
    """Stop `parts` from learning; returns how many parameters that froze. Raises UsageError for an unknown part."""
    frozen = 0
    for part in parts:
        if part == "embeddings":
            chosen = list(model.get_input_embeddings().parameters())
        elif part in PARTS:
            chosen = [value for name, value in model.named_parameters() if _part_of(name) == part]
        else:
            raise UsageError(f"student.freeze: {part!r} is no part; choose from {[*PARTS, 'embeddings']}")
        for parameter in chosen:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen


def _part_of(name: str) -> str | None:
    dotted = f".{name}"
    for part in ("projector", "vision"):
        if any(f".{marker}" in dotted for marker in PARTS[part]):
            return part
    return None


class CompletionScorer(nn.Module):
    """The student as a module that maps a batch to log-probabilities, so that accelerate can wrap all of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        predicts_BS: Tensor,
        ids_N: Tensor,
        temperature: float = 1.0,
        support_NK: Tensor | None = None,
        top_k: int = 0,
    ) -> TokenScores:
        """Scores of the ids at the N positions that follow those where predicts_BS is True, and of support_NK there;
        with top_k, so many of the most likely ids.

        Only these positions go through the output head, in chunks.
        """
        hidden_BSH = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return token_logprobs(
            hidden_BSH[predicts_BS], self._head, ids_N, temperature=temperature, support_NK=support_NK, top_k=top_k
        )

    def _head(self, hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = self.model.get_output_embeddings()(hidden_NH)
        config = self.model.config.get_text_config()
        if scale := getattr(config, "logits_scaling", None):  # Granite
            logits_NV = logits_NV / scale
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits_NV = logits_NV * scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits_NV = cap * torch.tanh(logits_NV / cap)
        return logits_NV
