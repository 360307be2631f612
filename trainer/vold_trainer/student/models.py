"""Students: any vision-language or text model of transformers, with its processor and its trainable parameters.

Shapes: B sequences, S positions of prompt and completion together, T completion positions, H hidden size.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging
from vold_packing.transformers import attention_for, undocumented
from vold_proto.distribution import missing_extra_message

from vold_trainer.config import StudentConfig, TokenConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.hub import explain_hub_failure
from vold_trainer.paths import is_evident_path, require_model_folder
from vold_trainer.pocket.shipped import resolve_model
from vold_trainer.student import encoding
from vold_trainer.student.added_tokens import RECORD, add_tokens, choose_tokens, write_record
from vold_trainer.student.liger import apply_liger
from vold_trainer.student.logprobs import RECOMPUTE_BYTES, TokenScores, chunk_bytes, chunk_size, token_logprobs
from vold_trainer.student.lora import add_lora, has_lora, merge_lora, save_adapter
from vold_trainer.student.parts import freeze
from vold_trainer.student.pictures import PictureCache
from vold_trainer.student.prefill import PROMPT_INDEX, shared_hidden
from vold_trainer.student.processors import load_processor
from vold_trainer.student.texts import Texts
from vold_trainer.student.token_rows import fold_rows, train_rows
from vold_trainer.student.trial import try_transformers

with undocumented():
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

log = logging.getLogger("vold.models")
transformers_logging.disable_progress_bar()  # one bar per file read or written would hide the run's own


@dataclass
class Student(Texts):
    """A model with its processor and tokenizer. `processor` is the tokenizer if the model reads text only."""

    model: PreTrainedModel
    processor: Any
    tokenizer: Any
    path: str
    vocab_size: int
    """Rows of the embedding, padding included. Stored because partitioned weights do not show it."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the chat template."""
    added_tokens: tuple[TokenConfig, ...] = ()
    """The tokens that `student.add_tokens` gave it, now or before."""
    new_tokens: bool = False
    """Whether some of them are not in the folder that it was loaded from."""
    pictures: PictureCache = field(default_factory=PictureCache, repr=False, compare=False)
    """What the processor made of prompts with images, within a training step."""

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a completion, the tokenizer's EOS first."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        for item in configured if isinstance(configured, list) else [configured]:
            if item is not None and item not in ids:
                ids.append(item)
        return ids

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids that stand for an image or a video in a prompt. They are invalid in completions, which have no images."""
        config = self.model.config
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        return sorted({getattr(config, name) for name in names if getattr(config, name, None) is not None})

    @functools.cached_property
    def banned_ids(self) -> list[int]:
        """Ids that are never sampled: placeholders, and rows of the vocabulary's padding, which stand for no token."""
        known = set(self.tokenizer.get_vocab().values())
        return sorted({*self.placeholder_ids, *(token for token in range(self.vocab_size) if token not in known)})

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0]

    @property
    def max_positions(self) -> int | None:
        """The most positions of a sequence; None if the model states no such limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def computes_positions(self) -> bool:
        """Whether the model has multi-dimensional positions and computes them itself."""
        return hasattr(self.model.base_model, "get_rope_index")

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Model inputs of the prompts, padded on the left: input_ids and attention_mask [B, S] and, if there are
        images, the processor's outputs for them.

        Raises UsageError if an example has images and the student reads text only.
        """
        return encoding.encode(
            self.processor,
            self.tokenizer,
            self.model,
            examples,
            self.pad_id,
            self.path,
            self.pictures,
            self.shield,
            self.template_variables,
        )

    def prompt_ids(self, examples: Sequence[Example]) -> list[list[int]]:
        """The token ids of each prompt, image placeholders included, without padding."""
        inputs = self.encode(examples)
        return [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write a transformers folder that `from_pretrained` loads. With LoRA, the written weights include the
        adapters, the student itself is not changed, and `folder/adapter` holds the adapters alone in peft's format,
        with the rows of added tokens and a tokenizer that has them.

        state: the whole state dict of the model, if it was gathered elsewhere (sharded training).
        """
        if has_lora(self.model):
            save_adapter(self.model, folder / "adapter", state)
            if self.added_tokens:
                self.tokenizer.save_pretrained(folder / "adapter")
            state = merge_lora(self.model, state)
        state = fold_rows(self.model, state)
        with neutral_generation(self.model):
            self.model.save_pretrained(folder, state_dict=None if state is None else dict(state))
        self.processor.save_pretrained(folder)
        if self.processor is not self.tokenizer:
            self.tokenizer.save_pretrained(folder)
        if self.added_tokens:
            write_record(folder / RECORD, self.added_tokens)


@contextmanager
def neutral_generation(model: PreTrainedModel) -> Iterator[None]:
    """Let the model have a generation config that names its special ids alone: a server that reads the file then draws
    as training did, not with the penalties and the temperature that the base model was published with.
    """
    published = model.generation_config
    if published is not None:
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(published, name, None) for name in names})
    try:
        yield
    finally:
        model.generation_config = published


def load_student(config: StudentConfig, offered: Sequence[TokenConfig] | None = None) -> Student:
    """Load the student on the CPU, as an image-text model if it is one, otherwise as a text model.

    offered: the added tokens of the run's teacher, for `add_tokens: teacher`. Raises UsageError that names the path if
    the model cannot be loaded, or cannot get the tokens that the config names; IncompatibleVersionError if the
    installed transformers does not fit.
    """
    try_transformers()
    path = resolve_model(config.path)
    if is_evident_path(path):
        require_model_folder(path, f"student.path {config.path!r}", "OWNER/NAME of a model of the hub, or pocket:NAME")
    model, processor, tokenizer = _load_pretrained(path, config)
    tokens = choose_tokens(config, path, tokenizer, offered)
    return make_student(model, processor, tokenizer, config, tokens)


def make_student(
    model: PreTrainedModel, processor: Any, tokenizer: Any, config: StudentConfig, tokens: Sequence[TokenConfig] = ()
) -> Student:
    """The student of a model that is in memory, prepared as the config asks. tokens: that it has or gets. Raises as
    `load_student`.
    """
    new_tokens = add_tokens(model, tokenizer, tokens)
    _check_logits(model)
    encoding.check_template(processor, tokenizer, config.path, config.chat_template_kwargs)
    embeddings: Any = model.get_input_embeddings()
    vocab_size = int(embeddings.weight.shape[0])
    _set_trainable(model, config)
    if config.liger:
        apply_liger(model)
    if config.compute is not None:
        _autocast(model, getattr(torch, config.compute))
    if config.head_dtype is not None:
        compute_head_in_float32(model)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    train_rows(model, [token.id for token in tokens], torch.float32 if config.lora is not None else None)
    return Student(
        model,
        processor,
        tokenizer,
        config.path,
        vocab_size,
        config.chat_template_kwargs,
        tuple(tokens),
        bool(new_tokens),
    )


def _load_pretrained(path: str, config: StudentConfig) -> tuple[PreTrainedModel, Any, Any]:
    """(model, processor, tokenizer) of a folder or hub name."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    try:
        model_config = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise _loading_error(path, config, error) from error
    options |= {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    auto = AutoModelForImageTextToText if _reads_images(model_config) else AutoModelForCausalLM
    unset_hf_deepspeed_config()  # otherwise the weights would be partitioned here, before they are checked
    try:
        model = auto.from_pretrained(path, attn_implementation=attention_for(model_config), **options)
        if auto is AutoModelForImageTextToText:
            processor = load_processor(path, trust_remote_code=config.trust_remote_code)
            tokenizer = processor.tokenizer
        else:
            processor = tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, ImportError) and "num2words" in str(error) and find_spec("num2words") is None:
            raise UsageError(missing_extra_message(f"student.path {config.path!r}", "num2words", "smolvlm")) from error
        raise _loading_error(path, config, error) from error
    return model, processor, tokenizer


def _loading_error(path: str, config: StudentConfig, error: Exception) -> UsageError:
    why = None if is_evident_path(path) else explain_hub_failure(error, path)
    return UsageError(f"student.path {config.path!r}" + (f": {why}" if why else f" cannot be loaded: {error}"))


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Store only the inputs of each layer for the backward pass, and recompute the other activations."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name in newer versions of transformers
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def _reads_images(model_config: Any) -> bool:
    return type(model_config) in AutoModelForImageTextToText._model_mapping


def _set_trainable(model: PreTrainedModel, config: StudentConfig) -> None:
    if config.lora is None:
        freeze(model, config.freeze)
        return
    if both := sorted(set(config.freeze) & set(config.lora.parts)):
        raise UsageError(f"student.freeze and student.lora.parts both name {both[0]!r}: take it out of one")
    freeze(model, config.freeze)  # only for its errors: add_lora freezes all parameters except the adapters
    add_lora(model, config.lora, config.path)


@torch.no_grad()
def _check_logits(model: PreTrainedModel) -> None:
    """Raise UsageError if `logits` of the hidden states differ from the model's: some families transform theirs."""
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    model.eval()
    if model.base_model is not model:
        computed = logits(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        expected = model(input_ids=ids, use_cache=False).logits
        if torch.allclose(computed.float(), expected.float(), rtol=1e-2, atol=1e-2):
            return
    raise UsageError(
        f"{type(model).__name__} computes its logits in a way that vold does not know: use another student"
    )


def _autocast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Compute matrix products in `dtype`, in calls of the whole model, of its base model and of its output head."""

    def with_autocast(forward: Any) -> Any:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(model.device.type, dtype=dtype):
                return forward(*args, **kwargs)

        return run

    for module in (model, model.base_model, model.get_output_embeddings()):
        module.forward = with_autocast(module.forward)
    # Rotated keys are float32 and values are `dtype`, but a cache of fixed size has one dtype for both.
    model._can_compile_fullgraph = False


def compute_head_in_float32(model: PreTrainedModel) -> None:
    """Compute the output head's product in float32, whatever the dtype of the weights and of the other products.

    bfloat16 logits between 16 and 32 are multiples of 0.125, which is what a log-probability is then off by.
    """
    head: Any = model.get_output_embeddings()

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return nn.functional.linear(hidden.float(), head.weight.float(), bias)

    head.forward = forward


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [..., V] of hidden states [..., H], equal to those of the whole model."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


class CompletionScorer(nn.Module):
    """A module that maps a batch to log-probabilities under the student, for accelerate to wrap as a whole."""

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
        support_ids_NK: Tensor | None = None,
        top_k: int = 0,
        entropy_gradient: bool = False,
    ) -> TokenScores:
        """Scores of ids_N, the tokens that follow the N positions where predicts_BS is True, and of support_ids_NK;
        with top_k, also that many of the most likely ids.

        Only these positions go through the output head, in chunks.
        """
        if PROMPT_INDEX in inputs:
            hidden_BSH = shared_hidden(self.model, inputs)
        else:
            hidden_BSH = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return token_logprobs(
            hidden_BSH[predicts_BS],
            functools.partial(logits, self.model),
            ids_N,
            temperature=temperature,
            chunk=chunk_size(self.vocabulary, chunk_bytes(hidden_BSH.device)),
            recompute=4 * len(ids_N) * self.vocabulary > RECOMPUTE_BYTES,
            support_ids_NK=support_ids_NK,
            top_k=top_k,
            entropy_gradient=entropy_gradient,
        )
