"""Examples of the pocket world: the same problem as a sentence or as a picture.

Wording, blanks and length vary from prompt to prompt. A student that learned to copy from a fixed place would be lost
on a picture, so nothing stands at a fixed place.
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
    problems,
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


def examples(
    split: Split,
    n: int,
    *,
    modality: Modality,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT_DIFFICULTY,
    families: Sequence[Family] = FAMILIES,
    offset: int = 0,
) -> list[Example]:
    """Examples offset to offset + n of a split. Raises ValueError as problems.draw does, or for an unknown modality.

    Twins, text and image of one problem, differ in the end of their id alone: test-000123-text, test-000123-image. As
    modality "twin", test-000123-twin is the image with the text as what a teacher reads in its place.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality={modality!r} is unknown; choose one of {', '.join(MODALITIES)}")
    drawn = problems(split, n, seed=seed, difficulty=difficulty, families=families, offset=offset)
    return [example(problem, modality, seed=seed) for problem in drawn]


def example(problem: Problem, modality: Modality, *, task: Task = "solve", seed: int = 0) -> Example:
    """One problem as a prompt, to be solved or to be copied; its wording and its pixels follow from id and seed."""
    salt = f"{seed}:{problem.id}:{problem.expression}"
    looks = "text" if modality == "text" else "image"
    rng = Random(f"wording:{task}:{looks}:{salt}")
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
    twin = example(problem, "text", task=task, seed=seed).messages if modality == "twin" else None
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
