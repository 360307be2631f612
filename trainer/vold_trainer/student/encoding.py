"""Messages and pictures as model inputs, for any processor of transformers and for any mixture in one batch.

Families lay pictures out differently: one after another over the whole batch (Qwen, LLaVA, Gemma-3), or in a row for
each sequence that is padded to the longest (Idefics3, SmolVLM). Either way only the sequences that have pictures go
through the processor; the others are text to the tokenizer, and no family sees a sequence with an empty row.

Shapes: B sequences, S positions.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vold_trainer.data import Example
from vold_trainer.errors import UsageError

TYPES = ("token_type_ids", "mm_token_type_ids")
"""What a model may want to know of each token: 0 is text."""


def render(processor: Any, tokenizer: Any, example: Example) -> str:
    """The prompt as the chat template writes it, up to where the answer begins.

    Templates of image models read content as a list of parts and some drop a string without a word; those of text
    models the other way round: content is given in the form that each reads. Raises UsageError where the template
    still drops words of the last turn.
    """
    as_parts = processor is not tokenizer
    messages = [{**message, "content": _content(message["content"], as_parts)} for message in example.messages]
    # The tokenizer's own method: some processors' ask for their video part even to write text.
    template = processor.chat_template
    if isinstance(template, dict):
        template = template["default"]
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    for part in _content(example.messages[-1]["content"], True):
        if part["type"] == "text" and part["text"].strip() not in text:
            raise UsageError(
                f"example {example.id!r}: the student's chat template drops {part['text'].strip()[:60]!r} of the last "
                "message: mend its template, or the form of the messages"
            )
    return text


def _content(content: Any, as_parts: bool) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if as_parts else content
    if as_parts or any(part["type"] != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


def encode(
    processor: Any, tokenizer: Any, model: nn.Module, examples: Sequence[Example], pad_id: int, path: str
) -> dict[str, Tensor]:
    """Model inputs of the prompts, padded on the left: input_ids and attention_mask [B, S], the types of tokens [B, S]
    that the model asks for, and what the processor makes of the images, in the order of the examples.

    Raises UsageError where an example has images and the student reads text only.
    """
    texts = [render(processor, tokenizer, example) for example in examples]
    options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    options |= {"return_token_type_ids": False, "add_special_tokens": _adds_special_tokens(processor, tokenizer, texts)}
    pictured = [index for index, example in enumerate(examples) if example.images]
    if pictured and processor is tokenizer:
        raise UsageError(f"student {path!r} reads text only, but example {examples[pictured[0]].id!r} has an image")
    parts: list[tuple[list[int], dict[str, Tensor]]] = []
    if pictured:
        images = [list(examples[index].images) for index in pictured]
        parts.append((pictured, dict(processor(text=[texts[i] for i in pictured], images=images, **options))))
    if plain := [index for index in range(len(examples)) if index not in set(pictured)]:
        parts.append((plain, dict(tokenizer([texts[index] for index in plain], **options))))
    inputs = parts[0][1] if len(parts) == 1 else _merged(parts, len(examples), pad_id)
    for name in TYPES:
        if processor is not tokenizer and name not in inputs and name in inspect.signature(model.forward).parameters:
            inputs[name] = torch.zeros_like(inputs["input_ids"])
    return inputs


def _adds_special_tokens(processor: Any, tokenizer: Any, texts: Sequence[str]) -> bool:
    """As transformers has it: a text model's template writes all special tokens; an image model's tokenizer puts its
    BOS first unless the template did.
    """
    if processor is tokenizer:
        return False
    return tokenizer.bos_token is None or not texts[0].startswith(tokenizer.bos_token)


def _merged(parts: Sequence[tuple[Sequence[int], dict[str, Tensor]]], count: int, pad_id: int) -> dict[str, Tensor]:
    """The rows of several batches in one, by their places; what is no value a token is that of the first part."""
    length = max(inputs["input_ids"].shape[1] for _, inputs in parts)
    shape = parts[0][1]["input_ids"].shape
    merged: dict[str, Tensor] = {}
    for name, value in parts[0][1].items():
        if value.shape != shape:
            merged[name] = value
            continue
        merged[name] = value.new_full((count, length), pad_id if name == "input_ids" else 0)
        for rows, inputs in parts:
            if name in inputs:
                merged[name][torch.tensor(rows), length - inputs[name].shape[1] :] = inputs[name]
    return merged
