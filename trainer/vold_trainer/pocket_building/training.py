"""Training of a pocket model: batches of prompts and completions, a loss on the completions, one loop.

Shape letters: B sequences, S positions of a sequence, N cells of all pictures of a batch, H hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch.nn import functional as F

from vold_trainer.data import Example

IGNORED = -100
Progress = Callable[[int, dict[str, float]], None]
"""Called after a step with its number, from 1, and its metrics."""


@dataclass(frozen=True)
class Recipe:
    """Steps, batch size and optimiser settings: AdamW, linear warm-up, cosine decay to a twentieth of lr.

    buckets: batches whose samples are made together and sorted by length, which saves padding. 1: no sorting.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    buckets: int = 8


@dataclass(frozen=True)
class Sample:
    """A prompt and its target completion, without the end of turn."""

    example: Example
    completion: str


@dataclass
class Batch:
    """inputs: arguments of the model's forward. labels_BS: token ids at completion positions, IGNORED elsewhere.
    cells_N: id of the character in each picture cell; empty without pictures.
    """

    inputs: dict[str, torch.Tensor]
    labels_BS: torch.Tensor
    cells_N: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


def prompt_text(processor: Any, example: Example) -> str:
    """The prompt as the chat template renders it, up to the start of the assistant's answer."""
    text: str = processor.apply_chat_template(list(example.messages), tokenize=False, add_generation_prompt=True)
    return text


def encode_prompts(processor: Any, examples: Sequence[Example], completions: Sequence[str] = ()) -> dict[str, Any]:
    """Prompts, each followed by its completion if there are any, as tensors padded on the left."""
    texts = [prompt_text(processor, example) for example in examples]
    if completions:
        texts = [prompt + completion for prompt, completion in zip(texts, completions, strict=True)]
    images = [image for example in examples for image in example.images]
    pictures = {"images": images} if images else {}
    return dict(processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **pictures))


def collate(processor: Any, samples: Sequence[Sample]) -> Batch:
    """Samples as one batch. Each completion ends with the end of turn, on which the model is trained too."""
    tokenizer = getattr(processor, "tokenizer", processor)
    completions = [sample.completion + tokenizer.eos_token for sample in samples]
    inputs = encode_prompts(processor, [sample.example for sample in samples], completions)
    labels_BS = torch.full_like(inputs["input_ids"], IGNORED)
    for row, ids in enumerate(tokenizer(completions).input_ids):
        labels_BS[row, -len(ids) :] = torch.tensor(ids)
    cells = "".join(sample.example.meta.get("cells", "") for sample in samples)
    return Batch(inputs, labels_BS, torch.tensor(tokenizer.convert_tokens_to_ids(list(cells)), dtype=torch.long))


def completion_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the completion tokens of a batch."""
    targets_BS = labels_BS[:, 1:]
    mask_BS = targets_BS != IGNORED
    return F.cross_entropy(logits_BSV[:, :-1][mask_BS], targets_BS[mask_BS])


def alignment_loss(features_NH: torch.Tensor, embeddings_NH: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of cell features from their characters' embeddings, relative to the embeddings' size.

    The embeddings are the target and get no gradient.
    """
    target_NH = embeddings_NH.detach()
    return (features_NH - target_NH).square().mean() / target_NH.square().mean()


def train(
    model: Any,
    processor: Any,
    make_samples: Callable[[int], Sequence[Sample]],
    recipe: Recipe,
    *,
    alignment_weight: float = 0.0,
    progress: Progress | None = None,
) -> None:
    """Train the model in place on the samples of make_samples(n), which returns n of them.

    alignment_weight: factor of alignment_loss in the loss, for models with a vision tower.
    """
    optimizer = _make_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, recipe))
    vision_outputs: list[torch.Tensor] = []
    hook = None
    if alignment_weight:
        hook = model.model.visual.register_forward_hook(
            lambda module, args, output: vision_outputs.append(output.pooler_output)
        )
    model.train()
    for step, batch in enumerate(_batches(processor, make_samples, recipe), start=1):
        vision_outputs.clear()
        loss = completion_loss(model(**batch.inputs).logits, batch.labels_BS)
        metrics = {"loss": loss.item()}
        if vision_outputs:
            aligned = alignment_loss(vision_outputs[0], model.get_input_embeddings()(batch.cells_N))
            loss = loss + alignment_weight * aligned
            metrics["alignment"] = aligned.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, metrics)
    if hook:
        hook.remove()
    model.eval()


def _make_optimizer(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def _batches(processor: Any, make_samples: Callable[[int], Sequence[Sample]], recipe: Recipe) -> Iterator[Batch]:
    """One batch per step, of samples of similar length, which saves padding."""
    order = Random(recipe.steps)
    for start in range(0, recipe.steps, recipe.buckets):
        buckets = min(recipe.buckets, recipe.steps - start)
        samples = sorted(make_samples(buckets * recipe.batch), key=_length)
        for bucket in order.sample(range(buckets), buckets):
            yield collate(processor, samples[bucket * recipe.batch : (bucket + 1) * recipe.batch])


def _length(sample: Sample) -> int:
    contents = (message["content"] for message in sample.example.messages)
    text = sum(len(content) if isinstance(content, str) else 0 for content in contents)
    return text + len(sample.example.meta.get("cells", "")) + len(sample.completion)


def _learning_rate_factor(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
