"""Builds the checkpoints that ship with the pocket world: a teacher, another teacher, and a base student.

    vold pocket build --out DIR

The teachers learn reasoning chains from text. The base student learns to read, pictures and text at every length, then
two-term sums from text in its own words; it never sees a longer sum worked out. Accuracies are measured on the files
as saved, after rounding to bfloat16, and written to BUILD.json beside them with all that is needed to build them again.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from vold_trainer.pocket import chains
from vold_trainer.pocket.problems import DEFAULT_DIFFICULTY, Difficulty, Problem, draw, problems
from vold_trainer.pocket.shipped import CHECKPOINT_NAMES
from vold_trainer.pocket.world import Modality, example
from vold_trainer.pocket_building import measure, models
from vold_trainer.pocket_building.tokenizer import build_tokenizer
from vold_trainer.pocket_building.training import Progress, Recipe, Sample, train
from vold_trainer.student.processors import load_processor

BUILD_FILE = "BUILD.json"
POOL = 20_000
"""Problems drawn for a training; each is worded or drawn anew every time it comes up."""
TEST_PROBLEMS = 500
WIDE = Difficulty(2, 4, brackets=True, negatives=True)
EASY = Difficulty(2, 2, negatives=True)
TEACHER_RECIPE = Recipe(steps=1400, batch=64, lr=3e-3)
OTHER_TEACHER_RECIPE = Recipe(steps=1000, batch=64, lr=2e-3)
ALIGNMENT_WEIGHT = 1.0


@dataclass(frozen=True)
class Stage:
    """A part of the base student's training: shares of pictures to read and of sentences to copy; the rest are
    two-term sums, drawn as easy problems or taken out of longer ones of the given difficulty. thinking: the share
    of copies written between think tags, so that what is read can be written there too.
    """

    recipe: Recipe
    picture: float
    copy: float
    difficulty: Difficulty
    sums_of_longer: bool
    thinking: float = 0.0


STUDENT_STAGES = (
    Stage(Recipe(steps=1500, batch=64, lr=2e-3), 0.5, 0.25, WIDE, sums_of_longer=False),
    Stage(Recipe(steps=900, batch=64, lr=1.5e-3), 0.3, 0.1, WIDE, sums_of_longer=True),
    Stage(Recipe(steps=1200, batch=64, lr=2e-3), 0.25, 0.1, DEFAULT_DIFFICULTY, sums_of_longer=True),
    Stage(Recipe(steps=450, batch=64, lr=1.5e-3), 0.25, 0.1, DEFAULT_DIFFICULTY, sums_of_longer=True),
    Stage(Recipe(steps=400, batch=64, lr=1.5e-3), 0.45, 0.15, DEFAULT_DIFFICULTY, sums_of_longer=True, thinking=0.7),
)
"""Reading first, then sums beside reading, so that it forgets nothing; last the size of sums of the default world."""


@dataclass(frozen=True)
class Built:
    """One line of BUILD.json."""

    seed: int
    command: str
    versions: dict[str, str]
    recipes: list[dict[str, Any]]
    parameters: int
    seconds: float
    threads: int
    test_problems: int
    accuracies: dict[str, float]
    note: str = ""


def build(name: str, out: Path, *, seed: int = 0, progress: Progress | None = None) -> Built:
    """Trains one checkpoint, saves it to out/name, measures it and notes it in out/BUILD.json.

    The same seed, library versions and number of threads give the same weights. Raises ValueError for an unknown name.
    """
    recipes = recipes_of(name)
    started = time.monotonic()
    folder = out / name
    if name == "student":
        model = build_student(folder, seed, progress)
    else:
        model = build_teacher(folder, seed, other=name == "teacher-b", progress=progress)
    built = Built(
        seed=seed,
        command=f"vold pocket build --seed {seed} --only {name}",
        versions={"python": platform.python_version()}
        | {library: version(library) for library in ("torch", "transformers", "tokenizers", "reasoning-gym", "pillow")},
        recipes=[asdict(recipe) for recipe in recipes],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(time.monotonic() - started, 1),
        threads=torch.get_num_threads(),
        test_problems=TEST_PROBLEMS,
        accuracies=measure_student(folder) if name == "student" else measure_teacher(folder),
    )
    note = out / BUILD_FILE
    notes = json.loads(note.read_text()) if note.exists() else {}
    notes[name] = asdict(built)
    note.write_text(json.dumps(notes, indent=2, sort_keys=True) + "\n")
    return built


def recipes_of(name: str) -> tuple[Recipe, ...]:
    """How a checkpoint is trained, one recipe after another. Raises ValueError for an unknown name."""
    if name not in CHECKPOINT_NAMES:
        raise ValueError(f"checkpoint={name!r} is unknown; choose one of {', '.join(CHECKPOINT_NAMES)}")
    if name == "student":
        return tuple(stage.recipe for stage in STUDENT_STAGES)
    return (TEACHER_RECIPE,) if name == "teacher" else (TEACHER_RECIPE, OTHER_TEACHER_RECIPE)


def build_teacher(folder: Path, seed: int, *, other: bool, progress: Progress | None = None) -> PreTrainedModel:
    """Trains a teacher on chains of reasoning about sentences and saves it, rounded, with its tokenizer.

    The other teacher learns the same sums and then another hand to write them in.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = models.build_teacher(tokenizer)

    def samples(pool: Sequence[Problem], rng: Random, chain: Callable[[Problem], str]) -> Callable[[int], list[Sample]]:
        return lambda n: [
            Sample(example(problem, "text", seed=rng.getrandbits(32)), chain(problem))
            for problem in rng.choices(pool, k=n)
        ]

    first = samples(_pool(seed, WIDE), Random(f"teacher:{seed}"), chains.teacher_chain)
    train(model, tokenizer, first, TEACHER_RECIPE, progress=progress)
    if other:
        _round(model)
        second = samples(_pool(seed, DEFAULT_DIFFICULTY), Random(f"teacher:{seed}:other"), chains.other_teacher_chain)
        train(model, tokenizer, second, OTHER_TEACHER_RECIPE, progress=_after(TEACHER_RECIPE.steps, progress))
    _save(model, folder)
    tokenizer.save_pretrained(folder)
    return model


def build_student(folder: Path, seed: int, progress: Progress | None = None) -> PreTrainedModel:
    """Trains the base student to read, then to do two-term sums, and saves it, rounded, with its processor."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model, processor = models.build_student(tokenizer), models.build_processor(tokenizer)
    easy = _pool(seed, EASY)

    def samples(stage: Stage, rng: Random) -> Callable[[int], list[Sample]]:
        pool = _pool(seed, stage.difficulty)

        def sample() -> Sample:
            kind, salt = rng.random(), rng.getrandbits(32)
            problem = rng.choice(pool)
            if kind < stage.picture + stage.copy:
                modality: Modality = "image" if kind < stage.picture else "text"
                copy = problem.expression
                if stage.thinking and rng.random() < stage.thinking:
                    copy = f"{chains.THINK}{copy}{chains.END_THINK}"
                return Sample(example(problem, modality, task="copy", seed=salt), copy)
            problem = two_term_sum(problem, rng) if stage.sums_of_longer else rng.choice(easy)
            return Sample(example(problem, "text", seed=salt), chains.own_words(problem))

        return lambda n: [sample() for _ in range(n)]

    done = 0
    for number, stage in enumerate(STUDENT_STAGES):
        draws = samples(stage, Random(f"student:{seed}:{number}"))
        train(
            model,
            processor,
            draws,
            stage.recipe,
            alignment_weight=ALIGNMENT_WEIGHT,
            progress=_after(done, progress),
        )
        _round(model)
        done += stage.recipe.steps
    _save(model, folder)
    processor.save_pretrained(folder)
    return model


def _round(model: PreTrainedModel) -> None:
    """To the precision of the files, as if saved and loaded between two stages."""
    for value in model.parameters():
        value.data = value.data.bfloat16().float()


def _save(model: PreTrainedModel, folder: Path) -> None:
    halved: Any = model
    halved.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone; a container is another user


def _after(done: int, progress: Progress | None) -> Progress | None:
    """Progress of a stage as progress of the whole."""
    return progress and (lambda step, metrics: progress(done + step, metrics))


def two_term_sum(problem: Problem, rng: Random) -> Problem:
    """One operation of a longer problem as a problem of its own: the size of numbers that longer sums come to."""
    step = rng.choice(chains.steps(problem.expression))
    return replace(problem, expression=f"{step.left}{step.operator}{step.right}", answer=str(step.value), terms=2)


def measure_teacher(folder: Path) -> dict[str, float]:
    """Text accuracy of a saved teacher on the default test problems, greedy and sampled at temperature 1."""
    torch.manual_seed(0)
    model, processor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_processor(folder)
    test = problems("test", TEST_PROBLEMS, difficulty=DEFAULT_DIFFICULTY)
    return {
        "text": measure.accuracy(model, processor, test, "text"),
        "text_temperature_1": measure.accuracy(model, processor, test, "text", temperature=1.0),
    }


def measure_student(folder: Path) -> dict[str, float]:
    """What a saved student reads and reasons, from sentences and from pictures, on the default test problems."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = load_processor(folder)
    test = problems("test", TEST_PROBLEMS, difficulty=DEFAULT_DIFFICULTY)
    return {
        "text": measure.accuracy(model, processor, test, "text"),
        "image": measure.accuracy(model, processor, test, "image"),
        "text_transcription": measure.transcription(model, processor, test, "text"),
        "image_transcription": measure.transcription(model, processor, test, "image"),
    }


def _pool(seed: int, difficulty: Difficulty) -> Sequence[Problem]:
    return list(islice(draw("train", seed=seed + 1, difficulty=difficulty, distinct=False), POOL))
