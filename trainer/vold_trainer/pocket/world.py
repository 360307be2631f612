"""Examples of the pocket world: the same problem as a sentence or as a picture.

Wording, blanks and length vary between prompts, so that nothing has a fixed position. A student that learns to copy
from a fixed position fails on pictures.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal, get_args

from PIL import Image

from vold_trainer.data import Example, Message
from vold_trainer.pocket.pictures import draw_picture
from vold_trainer.pocket.problems import (
    DEFAULT_DIFFICULTY,
    FAMILIES,
    Difficulty,
    Family,
    Problem,
    Split,
    sample_problems,
)

Modality = Literal["text", "image", "twin"]
Task = Literal["solve", "copy"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
MAX_BLANKS = 8
INNER_BLANK_RATE = 0.2
TEXT_WORDINGS: dict[Task, tuple[str, ...]] = {
    "solve": (
        "Calculate {}.",
        "What is {}?",
        "{} = ?",
        "Work out {} please.",
        "Find the value of {}.",
        "{}: what does it make?",
        "Solve {}",
        "How much is {}?",
        "Compute: {}",
        "Sum: {} Thanks.",
    ),
    "copy": (
        "Copy {}.",
        "Copy this: {}",
        "Write down {} again.",
        "Read {}",
        "{} -- copy it.",
        "Repeat after me: {}.",
    ),
}
IMAGE_WORDINGS: dict[Task, tuple[str, ...]] = {
    "solve": ("Calculate.", "What is it?", "Work it out please.", "Find the value.", "Solve this.", "How much is it?"),
    "copy": ("Copy it.", "Copy the picture.", "Read this.", "Write it down.", "Repeat what you see."),
}


def make_examples(
    split: Split,
    n: int,
    *,
    modality: Modality,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT_DIFFICULTY,
    families: Sequence[Family] = FAMILIES,
    offset: int = 0,
) -> list[Example]:
    """Examples offset to offset + n of a split.

    The text and the image of one problem have ids that differ in the suffix alone: test-000123-text,
    test-000123-image. With modality "twin", the example test-000123-twin has the image for the student and the text for
    the teacher. Raises ValueError for an unknown modality, and where `stream_problems` does.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality={modality!r} is unknown; choose one of {', '.join(MODALITIES)}")
    problems = sample_problems(split, n, seed=seed, difficulty=difficulty, families=families, offset=offset)
    return [make_example(problem, modality, seed=seed) for problem in problems]


def make_example(problem: Problem, modality: Modality, *, task: Task = "solve", seed: int = 0) -> Example:
    """One problem as a prompt to solve or to copy. Wording and pixels are a function of the problem and the seed."""
    salt = f"{seed}:{problem.id}:{problem.expression}"
    form = "text" if modality == "text" else "image"
    rng = Random(f"wording:{task}:{form}:{salt}")
    meta = {"expression": problem.expression, "terms": problem.terms, "digits": problem.digits, "modality": modality}
    message: Message
    if modality == "text":
        message = {"role": "user", "content": _sentence(problem, task, rng)}
        images: tuple[Image.Image, ...] = ()
    else:
        picture = draw_picture(problem.expression, f"{task}:{salt}")
        wording = rng.choice(IMAGE_WORDINGS[task])
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": wording}]}
        images = (picture.image,)
        meta |= {"cells": picture.cells, "columns": picture.columns}
    twin = make_example(problem, "text", task=task, seed=seed).messages if modality == "twin" else None
    return Example(
        id=f"{problem.id}-{modality}",
        messages=(message,),
        reference=problem.answer,
        images=images,
        category=problem.family,
        meta=meta,
        twin=twin,
    )


def _sentence(problem: Problem, task: Task, rng: Random) -> str:
    wording = rng.choice(TEXT_WORDINGS[task])
    rate = INNER_BLANK_RATE if rng.random() < 0.5 else 0.0
    spaced = "".join(character + " " * (rng.random() < rate) for character in problem.expression).rstrip()
    return " " * rng.randint(0, MAX_BLANKS) + wording.format(" " * rng.randint(0, MAX_BLANKS) + spaced)
