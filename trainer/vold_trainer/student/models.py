"""Students: any transformers vision-language or text model, its processor, and what of it learns.

Shapes: B sequences, S positions of prompt and completion together, T completion positions, H hidden size.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
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
from vold_packing.transformers import attention_for, undocumented
from vold_proto.distribution import advice

from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.pocket.shipped import resolve_model
from vold_trainer.student import encoding
from vold_trainer.student.liger import apply_liger
from vold_trainer.student.logprobs import KEPT_BYTES, TokenScores, chunk_size, token_logprobs
from vold_trainer.student.lora import add_lora, has_lora, merged, save_adapter
from vold_trainer.student.parts import freeze
from vold_trainer.student.prefill import PROMPT_OF, shared_hidden
from vold_trainer.student.processors import load_processor
from vold_trainer.student.trial import try_transformers

with undocumented():
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

log = logging.getLogger("vold.models")
transformers_logging.disable_progress_bar()  # a bar for each file read or written would drown our own


@dataclass
class Student:
    """A model with what turns messages into its inputs. `processor` is a tokenizer where the model reads text only."""

    model: PreTrainedModel
    processor: Any
    tokenizer: Any
    path: str
    vocab_size: int
    """Rows of the embedding, padding included. Taken once: weights that are parted later do not tell."""

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

    @property
    def numbers_positions(self) -> bool:
        """Whether the model has positions beyond those of the tokens in order, and works them out itself."""
        return hasattr(self.model.base_model, "get_rope_index")

    def render(self, example: Example) -> str:
        """The prompt as the student's chat template writes it, up to where the answer begins.

        Raises UsageError where the template drops words of the last message.
        """
        return encoding.render(self.processor, self.tokenizer, example)

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Model inputs of the prompts, padded on the left: input_ids and attention_mask [B, S] and, where there
        are images, what the processor makes of them.

        Raises UsageError where an example has images and the student reads text only.
        """
        return encoding.encode(self.processor, self.tokenizer, self.model, examples, self.pad_id, self.path)

    def prompt_ids(self, examples: Sequence[Example]) -> list[list[int]]:
        """The token ids of each prompt, image places included, without padding."""
        inputs = self.encode(examples)
        return [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """An ordinary transformers folder that `from_pretrained` loads. With LoRA the adapters are merged into what is
        written, not into the student, and lie by themselves in `folder/adapter`, in peft's form.

        state: the model's whole state dict, where it is gathered elsewhere (sharded training).
        """
        if has_lora(self.model):
            save_adapter(self.model, folder / "adapter", state)
            state = merged(self.model, state)
        self.model.save_pretrained(folder, state_dict=None if state is None else dict(state))
        self.processor.save_pretrained(folder)
        if self.processor is not self.tokenizer:
            self.tokenizer.save_pretrained(folder)


def load_student(config: StudentConfig) -> Student:
    """The student as an image-text model, or as a text model where it is none. On the CPU; accelerate moves it.

    Raises UsageError that names the path where nothing can be loaded from it, UnfitError where transformers is the
    reason.
    """
    try_transformers()
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
    unset_hf_deepspeed_config()  # which would part the weights here, before anybody has looked at them
    try:
        model = auto.from_pretrained(path, attn_implementation=attention_for(model_config), **options)
        if auto is AutoModelForImageTextToText:
            processor = load_processor(path, trust_remote_code=config.trust_remote_code)
            tokenizer = processor.tokenizer
        else:
            processor = tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, ImportError) and "num2words" in str(error) and find_spec("num2words") is None:
            raise UsageError(advice(f"student.path {config.path!r}", "num2words", "smolvlm")) from error
        raise UsageError(f"student.path {config.path!r} cannot be loaded: {error}") from error
    _check_outputs(model)
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    _choose_what_learns(model, config)
    if config.liger:
        apply_liger(model)
    if config.compute is not None:
        _compute_in(model, getattr(torch, config.compute))
    if config.checkpoint_activations:
        checkpoint_activations(model)
    return Student(model, processor, tokenizer, config.path, rows)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the inputs of each layer alone for the way back, and compute the rest again."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in newer versions of transformers
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def _reads_images(model_config: Any) -> bool:
    return type(model_config) in AutoModelForImageTextToText._model_mapping


def _choose_what_learns(model: PreTrainedModel, config: StudentConfig) -> None:
    if config.lora is None:
        freeze(model, config.freeze)
        return
    if both := sorted(set(config.freeze) & set(config.lora.parts)):
        raise UsageError(f"student.freeze and student.lora.parts both name {both[0]!r}: take it out of one")
    freeze(model, config.freeze)  # only for its errors: with LoRA nothing but the adapters learns
    add_lora(model, config.lora, config.path)


@torch.no_grad()
def _check_outputs(model: PreTrainedModel) -> None:
    """That hidden states and output head give what the whole model gives: some families do more to their logits."""
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    model.eval()
    if model.base_model is not model:
        found = logits(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        whole = model(input_ids=ids, use_cache=False).logits
        if torch.allclose(found.float(), whole.float(), rtol=1e-2, atol=1e-2):
            return
    raise UsageError(f"{type(model).__name__} makes its logits in a way that vold does not know: use another student")


def _compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Matrix products in `dtype` wherever the model is entered: as a whole, below the output head, at the head."""

    def inside(forward: Any) -> Any:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(model.device.type, dtype=dtype):
                return forward(*args, **kwargs)

        return run

    for module in (model, model.base_model, model.get_output_embeddings()):
        module.forward = inside(module.forward)
    # Rotated keys come out as float32 and values as `dtype`: a cache of fixed size has room for one of the two.
    model._can_compile_fullgraph = False


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Hidden states [..., H] to logits [..., V], as the model itself would have them."""
    found: Tensor = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if scale := getattr(config, "logits_scaling", None):  # Granite
        found = found / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        found = found * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        found = cap * torch.tanh(found / cap)
    return found


class CompletionScorer(nn.Module):
    """The student as a module that maps a batch to log-probabilities, so that accelerate can wrap all of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = model.get_output_embeddings().weight.shape[0]

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
        if PROMPT_OF in inputs:
            hidden_BSH = shared_hidden(self.model, inputs)
        else:
            hidden_BSH = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return token_logprobs(
            hidden_BSH[predicts_BS],
            functools.partial(logits, self.model),
            ids_N,
            temperature=temperature,
            chunk=chunk_size(self.vocabulary),
            recompute=4 * len(ids_N) * self.vocabulary > KEPT_BYTES,
            support_NK=support_NK,
            top_k=top_k,
        )
