"""Accuracy of a pocket model: answers and transcriptions, scored on problems that it was not trained on."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from vold_trainer.pocket.problems import Problem, score
from vold_trainer.pocket.world import Modality, Task, make_example
from vold_trainer.pocket_building.training import encode_prompts

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
THINK_TAGS = re.compile("</?think>")
MAX_NEW_TOKENS = 96


def extract(completion: str) -> str | None:
    """The content of the last \\boxed{}, or None."""
    boxes = BOXED.findall(completion)
    return boxes[-1].strip() if boxes else None


@torch.inference_mode()
def generate(
    model: Any,
    processor: Any,
    problems: Sequence[Problem],
    modality: Modality,
    *,
    task: Task = "solve",
    temperature: float = 0.0,
    batch: int = 128,
) -> list[str]:
    """The model's completion of each problem, without special tokens. Temperature 0 is greedy."""
    tokenizer = getattr(processor, "tokenizer", processor)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    completions: list[str] = []
    for start in range(0, len(problems), batch):
        prompts = [make_example(problem, modality, task=task) for problem in problems[start : start + batch]]
        inputs = encode_prompts(processor, prompts)
        ids = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        completions += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions


def accuracy(
    model: Any, processor: Any, problems: Sequence[Problem], modality: Modality, *, temperature: float = 0.0
) -> float:
    """Share of problems whose boxed answer reasoning-gym scores 1."""
    completions = generate(model, processor, problems, modality, temperature=temperature)
    correct = [score(problem, extract(text)) == 1.0 for problem, text in zip(problems, completions, strict=True)]
    return sum(correct) / len(correct)


def transcription_accuracy(model: Any, processor: Any, problems: Sequence[Problem], modality: Modality) -> float:
    """Share of problems whose whole expression is copied, with or without think tags."""
    completions = generate(model, processor, problems, modality, task="copy")
    correct = [
        THINK_TAGS.sub("", text).strip() == problem.expression
        for problem, text in zip(problems, completions, strict=True)
    ]
    return sum(correct) / len(correct)
