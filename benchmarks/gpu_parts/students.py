"""Students with random weights in memory, and rollouts of random tokens with scores, as a run would have them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scores import RolloutScore
from vold_trainer.student.models import Student, make_student

from gpu_parts import shapes
from gpu_parts.measure import Bench, SkippedError

LETTERS = "abcdefghij klmnopqrst uvwxyz"
"""Of a prompt. The tokenizer has an id for each character."""


def make(bench: Bench, folder: Path, config: dict[str, Any]) -> Student:
    """A student of the config on the device. Raises SkippedError for what is not installed."""
    processor, tokenizer = shapes.student_folder(bench.size, folder)
    settings = StudentConfig(path=str(folder), **config)
    model = shapes.student_model(bench.size, tokenizer, bench.device, getattr(torch, settings.dtype))
    try:
        return make_student(model, processor, tokenizer, settings)
    except UsageError as error:
        raise SkippedError(str(error)) from error


def example(index: int, tokens: int) -> Example:
    """A prompt of about that many tokens, of which each index has another."""
    rng = np.random.default_rng(index)
    text = "".join(LETTERS[place] for place in rng.integers(0, len(LETTERS), max(1, tokens - 8)))
    return Example(str(index), [{"role": "user", "content": text}], "0")


def rollouts(student: Student, count: int, group: int, prompt: int, completion: int) -> list[Rollout]:
    """`count` completions of that many random tokens, `group` of each prompt, sampled as from a uniform student."""
    rng = np.random.default_rng(0)
    examples = [example(index, prompt) for index in range(-(-count // group))]
    logprobs = np.full(completion, -np.log(student.vocab_size), np.float32)
    found = []
    for row in range(count):
        ids = rng.integers(len(student.tokenizer) // 2, student.vocab_size, completion)
        one = examples[row // group]
        found.append(Rollout(row, one, (), tuple(ids.tolist()), "", truncated=True, logprobs=logprobs))
    return found


def scored(student: Student, count: int, group: int, prompt: int, completion: int) -> ScoredBatch:
    """Rollouts with scores as of a teacher that is nearly uniform; every second one is correct."""
    rng = np.random.default_rng(1)
    uniform = -float(np.log(student.vocab_size))
    scores = [
        RolloutScore(
            teacher_logprobs=(uniform + 0.1 * rng.standard_normal(completion)).astype(np.float32),
            reward=float(row % 2),
            correct=bool(row % 2),
        )
        for row in range(count)
    ]
    return ScoredBatch(rollouts(student, count, group, prompt, completion), scores, group)
