"""Encoding messages and images as model inputs, for any processor of transformers and any mixture in one batch.

Model families lay images out differently: concatenated over the whole batch (Qwen, LLaVA, Gemma-3), or one row per
sequence, padded to the longest (Idefics3, SmolVLM). In both cases only the sequences with images go through the
processor, and the tokenizer encodes the others, so that no family gets a sequence with an empty row of images.

Shapes: B sequences, S positions.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from vold_packing.marks import THOUGHTS_AND_TOOLS, Marks, Prompt, TooManyMarksError

from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.student.marks import Shield
from vold_trainer.student.pictures import PictureCache

_ANSWER = "forty-two"

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
RESERVED_VARIABLES = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}

TYPES = ("token_type_ids", "mm_token_type_ids")
"""Inputs with the type of each token, which some models need: 0 is text."""


def render(
    processor: Any, tokenizer: Any, marks: Marks, example: Example, variables: Mapping[str, Any] = NO_VARIABLES
) -> Prompt:
    """The prompt of an example. variables: further ones of the template.

    Templates of image models expect content as a list of parts, and some silently drop strings. Templates of text
    models expect strings. Content is converted to the expected form. Raises UsageError if the template still drops
    text of the system or of the user, or the texts spell too many different marks.
    """
    as_parts = processor is not tokenizer
    try:
        shielded, found = marks.shield(example.messages)
    except TooManyMarksError as error:
        raise UsageError(str(error)) from error
    messages = [{**message, "content": _content(message["content"], as_parts)} for message in shielded]
    text = _fill_in(processor, tokenizer, messages, variables, add_generation_prompt=True)
    for message in messages:
        for part in _content(message["content"], True) if message["role"] in ("system", "user") else ():
            if part["type"] == "text" and part["text"].strip() not in text:
                raise UsageError(
                    f"example {example.id!r}: the student's chat template drops {part['text'].strip()[:60]!r} of the "
                    f"turn of {message['role']!r}: correct its template, or the form of the messages"
                )
    return Prompt(text, found)


def check_template(processor: Any, tokenizer: Any, path: str, variables: Mapping[str, Any] = NO_VARIABLES) -> None:
    """Raise UsageError if the template does not open the answer's turn at the end of a prompt: what is generated there
    is no answer in a conversation; or if the template reads no such variable.
    """
    for name in variables:
        if name in RESERVED_VARIABLES:
            raise UsageError(f"student.chat_template_kwargs: {name!r} is set by vold: leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", str(_template(processor))):
            raise UsageError(
                f"student.chat_template_kwargs: the chat template of {path!r} reads no variable {name!r}: leave it out"
            )
    as_parts = processor is not tokenizer
    question = {"role": "user", "content": _content("6 times 7?", as_parts)}
    answer = {"role": "assistant", "content": _content(_ANSWER, as_parts)}
    try:
        prompt = _fill_in(processor, tokenizer, [question], variables, add_generation_prompt=True)
        whole = _fill_in(processor, tokenizer, [question, answer], variables, add_generation_prompt=False)
    except Exception:  # of a template that takes no such conversation: its rows say what it refuses
        return
    before, found, _ = whole.removeprefix(prompt).partition(_ANSWER)
    missing = re.sub(THOUGHTS_AND_TOOLS, "", before).strip()
    if found and whole.startswith(prompt) and missing:
        raise UsageError(
            f"student {path!r}: its chat template does not open the answer's turn, which {missing[:60]!r} does in a "
            "conversation: correct the template, which has to heed add_generation_prompt"
        )


def _template(processor: Any) -> Any:
    template = processor.chat_template
    return template["default"] if isinstance(template, dict) else template


def _fill_in(
    processor: Any,
    tokenizer: Any,
    messages: Sequence[Any],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    # With the tokenizer's method, because some processors need their video part even to render text.
    text: str = tokenizer.apply_chat_template(
        messages,
        chat_template=_template(processor),
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return text


def _content(content: Any, as_parts: bool) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if as_parts else content
    if as_parts or any(part["type"] != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


def encode(
    processor: Any,
    tokenizer: Any,
    model: nn.Module,
    examples: Sequence[Example],
    pad_id: int,
    path: str,
    pictures: PictureCache,
    shield: Shield,
    variables: Mapping[str, Any] = NO_VARIABLES,
) -> dict[str, Tensor]:
    """Model inputs of the prompts, padded on the left: input_ids and attention_mask [B, S], the token types [B, S] that
    the model takes, and the processor's outputs for the images, in the order of the examples.

    Raises UsageError if an example has images and the student reads text only.
    """
    prompts = [render(processor, tokenizer, shield.marks, example, variables) for example in examples]
    texts = [prompt.text for prompt in prompts]
    options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt", "verbose": False}
    options |= {"return_token_type_ids": False, "add_special_tokens": _adds_special_tokens(processor, tokenizer, texts)}
    with_images = [index for index, example in enumerate(examples) if example.images]
    if with_images and processor is tokenizer:
        raise UsageError(f"student {path!r} reads text only, but example {examples[with_images[0]].id!r} has an image")
    parts: list[tuple[list[int], dict[str, Tensor]]] = []

    def marked(indices: Sequence[int]) -> bool:
        return any(prompts[index].marks for index in indices)

    def process(indices: Sequence[int], *, images: bool = True) -> dict[str, Tensor]:
        own = shield.copies() if marked(indices) else (processor, tokenizer)
        chosen = [texts[index] for index in indices]
        if images:
            pictures_of = [list(examples[index].images) for index in indices]
            try:
                inputs = own[0](text=chosen, images=pictures_of, **options)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever the processor of a family raises
                raise _refused(pictures_of, error) from error
        else:
            inputs = own[1](chosen, **options)
        return shield.expand(inputs, [prompts[i].marks for i in indices], pad_id) if marked(indices) else dict(inputs)

    if with_images and marked(with_images):
        parts.append((with_images, process(with_images)))
    elif with_images:
        chosen = [examples[index] for index in with_images]
        cached = pictures.inputs(chosen, lambda part: process([with_images[index] for index in part]), pad_id)
        parts.append((with_images, cached))
    if text_only := [index for index in range(len(examples)) if index not in set(with_images)]:
        parts.append((text_only, process(text_only, images=False)))
    inputs = parts[0][1] if len(parts) == 1 else _merge(parts, len(examples), pad_id)
    for name in TYPES:
        if processor is not tokenizer and name not in inputs and name in inspect.signature(model.forward).parameters:
            inputs[name] = torch.zeros_like(inputs["input_ids"])
    return inputs


def _refused(pictures_of: Sequence[Sequence[Image.Image]], error: Exception) -> UsageError:
    """The error for images that the processor does not take."""
    sizes = ", ".join(f"{image.width} x {image.height}" for images in pictures_of for image in images)
    return UsageError(
        f"the student's processor refuses {'its' if len(pictures_of) == 1 else 'the'} images ({sizes[:60]} pixels): "
        f"{str(error)[:200]}: crop or resize them, or leave them out"
    )


def _adds_special_tokens(processor: Any, tokenizer: Any, texts: Sequence[str]) -> bool:
    """As in transformers: the template of a text model writes all special tokens, whereas the tokenizer of an image
    model adds its BOS unless the template wrote it.
    """
    if processor is tokenizer:
        return False
    return tokenizer.bos_token is None or not texts[0].startswith(tokenizer.bos_token)


def _merge(parts: Sequence[tuple[Sequence[int], dict[str, Tensor]]], count: int, pad_id: int) -> dict[str, Tensor]:
    """Merge the rows of several batches by index. Inputs that are not one value per token come from the first batch."""
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
