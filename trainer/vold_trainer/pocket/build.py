"""Builds the checkpoints that ship with the pocket world: a teacher, another teacher, and a base student.

    vold pocket build --out DIR

The teachers learn reasoning chains from text. The base student learns to read, pictures and text at every length, and
two-term sums from text in its own words; it never sees a longer sum worked out. Accuracies are measured on the files as
saved, after rounding to bfloat16, and written to BUILD.json beside them with all that is needed to build them again.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from vold_trainer.pocket import chains, measure, models
from vold_trainer.pocket.problems import DEFAULT_DIFFICULTY, Difficulty, Problem, draw, problems
from vold_trainer.pocket.tokenizer import build_tokenizer
from vold_trainer.pocket.training import Progress, Recipe, Sample, train
from vold_trainer.pocket.world import example

BUILD_FILE = "BUILD.json"
POOL = 20_000
"""Problems drawn for a training; each is worded or drawn anew every time it comes up."""
TEST_PROBLEMS = 500
SEEN = Difficulty(2, 4)
EASY = Difficulty(2, 2)
TEACHER_RECIPE = Recipe(steps=700, batch=96, lr=3e-3)
STUDENT_RECIPE = Recipe(steps=1500, batch=64, lr=2e-3)
ALIGNMENT_WEIGHT = 1.0
PICTURE_SHARE, COPY_SHARE = 0.5, 0.25
"""Shares of the base student's samples: pictures to read, sentences to copy; the rest are easy sums."""


@dataclass(frozen=True)
class Built:
    """One line of BUILD.json."""

    seed: int
    command: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    parameters: int
    seconds: float
    test_problems: int
    accuracies: dict[str, float]


def build(name: str, out: Path, *, seed: int = 0, progress: Progress | None = None) -> Built:
    """Trains one checkpoint, saves it to out/name, measures it and notes it in out/BUILD.json.

    The same seed, library versions and number of threads give the same weights. Raises ValueError for an unknown name.
    """
    recipe = recipe_of(name)
    started = time.monotonic()
    folder = out / name
    if name == "student":
        model = build_student(folder, seed, progress)
    else:
        chain = chains.teacher_chain if name == "teacher" else chains.other_teacher_chain
        # Another teacher is another run: other first weights, other order of problems.
        own_seed = 2 * seed + (name != "teacher")
        model = build_teacher(folder, own_seed, chain, progress)
    built = Built(
        seed=seed,
        command=f"vold pocket build --seed {seed} --only {name}",
        versions={"python": platform.python_version()}
        | {library: version(library) for library in ("torch", "transformers", "tokenizers", "reasoning-gym", "pillow")},
        recipe=asdict(recipe),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(time.monotonic() - started, 1),
        test_problems=TEST_PROBLEMS,
        accuracies=measure_student(folder) if name == "student" else measure_teacher(folder),
    )
    note = out / BUILD_FILE
    notes = json.loads(note.read_text()) if note.exists() else {}
    notes[name] = asdict(built)
    note.write_text(json.dumps(notes, indent=2, sort_keys=True) + "\n")
    return built


def recipe_of(name: str) -> Recipe:
    """How a checkpoint is trained. Raises ValueError for an unknown name."""
    if name not in models.CHECKPOINT_NAMES:
        raise ValueError(f"checkpoint={name!r} is unknown; choose one of {', '.join(models.CHECKPOINT_NAMES)}")
    return STUDENT_RECIPE if name == "student" else TEACHER_RECIPE


def build_teacher(
    folder: Path, seed: int, chain: Callable[[Problem], str], progress: Progress | None = None
) -> PreTrainedModel:
    """Trains a teacher on chains of reasoning about sentences and saves it, rounded, with its tokenizer."""
    torch.manual_seed(seed)
    rng = Random(f"teacher:{seed}")
    tokenizer = build_tokenizer()
    model = models.build_teacher(tokenizer)
    pool = _pool(seed, SEEN)

    def samples(n: int) -> list[Sample]:
        chosen = rng.choices(pool, k=n)
        return [Sample(example(problem, "text", seed=rng.getrandbits(32)), chain(problem)) for problem in chosen]

    train(model, tokenizer, samples, TEACHER_RECIPE, progress=progress)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def build_student(folder: Path, seed: int, progress: Progress | None = None) -> PreTrainedModel:
    """Trains the base student to read and to do easy sums, and saves it, rounded, with its processor."""
    torch.manual_seed(seed)
    rng = Random(f"student:{seed}")
    tokenizer = build_tokenizer()
    model, processor = models.build_student(tokenizer), models.build_processor(tokenizer)
    pool, easy = _pool(seed, SEEN), _pool(seed, EASY)

    def sample() -> Sample:
        kind, salt = rng.random(), rng.getrandbits(32)
        if kind < PICTURE_SHARE + COPY_SHARE:
            problem = rng.choice(pool)
            modality = "image" if kind < PICTURE_SHARE else "text"
            return Sample(example(problem, modality, task="copy", seed=salt), problem.expression)
        problem = rng.choice(easy)
        return Sample(example(problem, "text", seed=salt), chains.own_words(problem))

    def samples(n: int) -> list[Sample]:
        return [sample() for _ in range(n)]

    train(model, processor, samples, STUDENT_RECIPE, alignment_weight=ALIGNMENT_WEIGHT, progress=progress)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def measure_teacher(folder: Path) -> dict[str, float]:
    """Text accuracy of a saved teacher on the default test problems, greedy and sampled at temperature 1."""
    torch.manual_seed(0)
    model, processor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), models.load_processor(folder)
    test = problems("test", TEST_PROBLEMS, difficulty=DEFAULT_DIFFICULTY)
    return {
        "text": measure.accuracy(model, processor, test, "text"),
        "text_temperature_1": measure.accuracy(model, processor, test, "text", temperature=1.0),
    }


def measure_student(folder: Path) -> dict[str, float]:
    """What a saved student reads and reasons, from sentences and from pictures, on the default test problems."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = models.load_processor(folder)
    test = problems("test", TEST_PROBLEMS, difficulty=DEFAULT_DIFFICULTY)
    return {
        "text": measure.accuracy(model, processor, test, "text"),
        "image": measure.accuracy(model, processor, test, "image"),
        "text_transcription": measure.transcription(model, processor, test, "text"),
        "image_transcription": measure.transcription(model, processor, test, "image"),
    }


def _pool(seed: int, difficulty: Difficulty) -> Sequence[Problem]:
    return list(islice(draw("train", seed=seed + 1, difficulty=difficulty, distinct=False), POOL))
