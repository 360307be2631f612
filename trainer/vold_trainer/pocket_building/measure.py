"""How good a pocket model is: whole answers and whole transcriptions, scored on problems it was never trained on."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from vold_trainer.pocket.problems import Problem, score
from vold_trainer.pocket.world import Modality, Task, example
from vold_trainer.pocket_building.training import encode_prompts

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
THINK_TAGS = re.compile("</?think>")
MAX_NEW_TOKENS = 96


def extract(completion: str) -> str | None:
    """What stands in the last box, or None."""
    boxes = BOXED.findall(completion)
    return boxes[-1].strip() if boxes else None


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    problems: Sequence[Problem],
    modality: Modality,
    *,
    task: Task = "solve",
    temperature: float = 0.0,
    batch: int = 128,
) -> list[str]:
    """The model's completion for each problem, without special tokens; greedy at temperature 0, else sampled."""
    tokenizer = getattr(processor, "tokenizer", processor)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    completions: list[str] = []
    for start in range(0, len(problems), batch):
        prompts = [example(problem, modality, task=task) for problem in problems[start : start + batch]]
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
    completions = answer(model, processor, problems, modality, temperature=temperature)
    right = [score(problem, extract(text)) == 1.0 for problem, text in zip(problems, completions, strict=True)]
    return sum(right) / len(right)


def transcription(model: Any, processor: Any, problems: Sequence[Problem], modality: Modality) -> float:
    """Share of problems whose expression is copied whole, between think tags or not."""
    completions = answer(model, processor, problems, modality, task="copy")
    right = [
        THINK_TAGS.sub("", text).strip() == problem.expression
        for problem, text in zip(problems, completions, strict=True)
    ]
    return sum(right) / len(right)
