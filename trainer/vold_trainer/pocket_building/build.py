"""Builds the checkpoints that ship with the pocket world: a teacher, another teacher, and a base student.

    vold pocket build --out DIR

The teachers are trained on reasoning chains as text. The base student is trained to read pictures and text of every
length, then to solve two-term sums as text; it never sees the solution of a longer sum. Accuracies are measured on the
saved files, after rounding to bfloat16, and written to BUILD.json beside them with everything needed to rebuild them.
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
from vold_trainer.pocket.problems import DEFAULT_DIFFICULTY, Difficulty, Problem, sample_problems, stream_problems
from vold_trainer.pocket.shipped import CHECKPOINT_NAMES
from vold_trainer.pocket.world import Modality, make_example
from vold_trainer.pocket_building import measure, models
from vold_trainer.pocket_building.tokenizer import build_tokenizer
from vold_trainer.pocket_building.training import Progress, Recipe, Sample, train
from vold_trainer.student.processors import load_processor

BUILD_FILE = "BUILD.json"
POOL_SIZE = 20_000
"""Problems sampled for one training. A problem gets a new wording or picture each time it is used."""
TEST_PROBLEMS = 500
WIDE = Difficulty(2, 4, brackets=True, negatives=True)
EASY = Difficulty(2, 2, negatives=True)
TEACHER_RECIPE = Recipe(steps=1400, batch=64, lr=3e-3)
OTHER_TEACHER_RECIPE = Recipe(steps=1000, batch=64, lr=2e-3)
ALIGNMENT_WEIGHT = 1.0


@dataclass(frozen=True)
class Stage:
    """A stage of the base student's training.

    picture_share: samples that are pictures to copy. text_share: samples that are sentences to copy. The other samples
    are two-term sums: easy problems, or with sums_of_longer single operations of problems of this difficulty.
    think_share: copies that are written between think tags, so that the student learns to transcribe there too.
    """

    recipe: Recipe
    picture_share: float
    text_share: float
    difficulty: Difficulty
    sums_of_longer: bool
    think_share: float = 0.0


STUDENT_STAGES = (
    Stage(Recipe(steps=1500, batch=64, lr=2e-3), 0.5, 0.25, WIDE, sums_of_longer=False),
    Stage(Recipe(steps=900, batch=64, lr=1.5e-3), 0.3, 0.1, WIDE, sums_of_longer=True),
    Stage(Recipe(steps=1200, batch=64, lr=2e-3), 0.25, 0.1, DEFAULT_DIFFICULTY, sums_of_longer=True),
    Stage(Recipe(steps=450, batch=64, lr=1.5e-3), 0.25, 0.1, DEFAULT_DIFFICULTY, sums_of_longer=True),
    Stage(Recipe(steps=400, batch=64, lr=1.5e-3), 0.45, 0.15, DEFAULT_DIFFICULTY, sums_of_longer=True, think_share=0.7),
)
"""Copying first, then sums mixed with copying, so that copying is not forgotten; the last stages use sums of the
default difficulty.
"""


@dataclass(frozen=True)
class BuildRecord:
    """One entry of BUILD.json."""

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


def build(name: str, out: Path, *, seed: int = 0, progress: Progress | None = None) -> BuildRecord:
    """Train one checkpoint, save it to out/name, measure it and record it in out/BUILD.json.

    The same seed, library versions and number of threads give the same weights. Raises ValueError for an unknown name.
    """
    recipes = recipes_of(name)
    started = time.monotonic()
    folder = out / name
    if name == "student":
        model = build_student(folder, seed, progress)
    else:
        model = build_teacher(folder, seed, other=name == "teacher-b", progress=progress)
    record = BuildRecord(
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
    path = out / BUILD_FILE
    records = json.loads(path.read_text()) if path.exists() else {}
    records[name] = asdict(record)
    path.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n")
    return record


def recipes_of(name: str) -> tuple[Recipe, ...]:
    """The recipes with which a checkpoint is trained, in order. Raises ValueError for an unknown name."""
    if name not in CHECKPOINT_NAMES:
        raise ValueError(f"checkpoint={name!r} is unknown; choose one of {', '.join(CHECKPOINT_NAMES)}")
    if name == "student":
        return tuple(stage.recipe for stage in STUDENT_STAGES)
    return (TEACHER_RECIPE,) if name == "teacher" else (TEACHER_RECIPE, OTHER_TEACHER_RECIPE)


def build_teacher(folder: Path, seed: int, *, other: bool, progress: Progress | None = None) -> PreTrainedModel:
    """Train a teacher on reasoning chains as text and save it, rounded, with its tokenizer.

    The other teacher is trained like the first, and then on chains in the other style.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = models.build_teacher(tokenizer)

    def samples(pool: Sequence[Problem], rng: Random, chain: Callable[[Problem], str]) -> Callable[[int], list[Sample]]:
        return lambda n: [
            Sample(make_example(problem, "text", seed=rng.getrandbits(32)), chain(problem))
            for problem in rng.choices(pool, k=n)
        ]

    first = samples(_sample_pool(seed, WIDE), Random(f"teacher:{seed}"), chains.teacher_chain)
    train(model, tokenizer, first, TEACHER_RECIPE, progress=progress)
    if other:
        _round(model)
        second = samples(
            _sample_pool(seed, DEFAULT_DIFFICULTY), Random(f"teacher:{seed}:other"), chains.other_teacher_chain
        )
        train(model, tokenizer, second, OTHER_TEACHER_RECIPE, progress=_offset_progress(TEACHER_RECIPE.steps, progress))
    _save(model, folder)
    tokenizer.save_pretrained(folder)
    return model


def build_student(folder: Path, seed: int, progress: Progress | None = None) -> PreTrainedModel:
    """Train the base student to copy, then to solve two-term sums, and save it, rounded, with its processor."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model, processor = models.build_student(tokenizer), models.build_processor(tokenizer)
    easy = _sample_pool(seed, EASY)
    steps_done = 0
    for number, stage in enumerate(STUDENT_STAGES):
        pool, rng = _sample_pool(seed, stage.difficulty), Random(f"student:{seed}:{number}")
        make_samples = _student_samples(stage, pool, easy, rng)
        train(
            model,
            processor,
            make_samples,
            stage.recipe,
            alignment_weight=ALIGNMENT_WEIGHT,
            progress=_offset_progress(steps_done, progress),
        )
        _round(model)
        steps_done += stage.recipe.steps
    _save(model, folder)
    processor.save_pretrained(folder)
    return model


def _student_samples(
    stage: Stage, pool: Sequence[Problem], easy: Sequence[Problem], rng: Random
) -> Callable[[int], list[Sample]]:
    """A function that makes n samples of a stage of the base student's training."""

    def make_sample() -> Sample:
        kind, salt = rng.random(), rng.getrandbits(32)
        problem = rng.choice(pool)
        if kind < stage.picture_share + stage.text_share:
            modality: Modality = "image" if kind < stage.picture_share else "text"
            copy = problem.expression
            if stage.think_share and rng.random() < stage.think_share:
                copy = f"{chains.THINK}{copy}{chains.END_THINK}"
            return Sample(make_example(problem, modality, task="copy", seed=salt), copy)
        problem = two_term_sum(problem, rng) if stage.sums_of_longer else rng.choice(easy)
        return Sample(make_example(problem, "text", seed=salt), chains.student_chain(problem))

    return lambda n: [make_sample() for _ in range(n)]


def _round(model: PreTrainedModel) -> None:
    """Round the weights to the precision of the files, as if the model were saved and loaded between two stages."""
    for value in model.parameters():
        value.data = value.data.bfloat16().float()


def _save(model: PreTrainedModel, folder: Path) -> None:
    untyped: Any = model
    untyped.to(torch.bfloat16).save_pretrained(folder)
    # safetensors makes the file readable by its owner alone, but a container has another user.
    (folder / "model.safetensors").chmod(0o644)


def _offset_progress(steps_done: int, progress: Progress | None) -> Progress | None:
    """Report the progress of a stage as progress of the whole training."""
    return progress and (lambda step, metrics: progress(steps_done + step, metrics))


def two_term_sum(problem: Problem, rng: Random) -> Problem:
    """One operation of a longer problem as a problem, so that its numbers are as large as in longer sums."""
    step = rng.choice(chains.solution_steps(problem.expression))
    return replace(problem, expression=f"{step.left}{step.operator}{step.right}", answer=str(step.value), terms=2)


def measure_teacher(folder: Path) -> dict[str, float]:
    """Text accuracy of a saved teacher on the default test problems, greedy and sampled at temperature 1."""
    torch.manual_seed(0)
    model, processor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_processor(folder)
    test = sample_problems("test", TEST_PROBLEMS, difficulty=DEFAULT_DIFFICULTY)
    return {
        "text": measure.accuracy(model, processor, test, "text"),
        "text_temperature_1": measure.accuracy(model, processor, test, "text", temperature=1.0),
    }


def measure_student(folder: Path) -> dict[str, float]:
    """Accuracy of a saved student's answers and transcriptions, for text and pictures of the default test problems."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = load_processor(folder)
    test = sample_problems("test", TEST_PROBLEMS, difficulty=DEFAULT_DIFFICULTY)
    return {
        "text": measure.accuracy(model, processor, test, "text"),
        "image": measure.accuracy(model, processor, test, "image"),
        "text_transcription": measure.transcription_accuracy(model, processor, test, "text"),
        "image_transcription": measure.transcription_accuracy(model, processor, test, "image"),
    }


def _sample_pool(seed: int, difficulty: Difficulty) -> Sequence[Problem]:
    return list(islice(stream_problems("train", seed=seed + 1, difficulty=difficulty, distinct=False), POOL_SIZE))
