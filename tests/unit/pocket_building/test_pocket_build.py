"""The shipped checkpoints do what BUILD.json says, and a build with the same seed gives the same weights."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from typer.testing import CliRunner
from vold_trainer.pocket.problems import sample_problems
from vold_trainer.pocket.shipped import CHECKPOINT_NAMES, CHECKPOINTS, checkpoint_path
from vold_trainer.pocket_building import build as recipes
from vold_trainer.pocket_building import measure
from vold_trainer.pocket_building.cli import app
from vold_trainer.pocket_building.training import Recipe
from vold_trainer.student.processors import load_processor

SAMPLE = 60
SPREAD = 0.15
"""More than three standard errors of an accuracy above 0.9, or below 0.1, on a sample."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def records() -> dict:
    return json.loads((CHECKPOINTS / recipes.BUILD_FILE).read_text())


def check_accuracies(records: dict) -> None:
    assert records["teacher"]["accuracies"]["text"] >= 0.97
    assert records["teacher-b"]["accuracies"]["text"] >= 0.95
    student = records["student"]["accuracies"]
    assert student["image_transcription"] >= 0.97
    assert student["text_transcription"] >= 0.97
    assert 0 < student["text"] <= 0.15
    assert 0 < student["image"] <= 0.15
    assert all(record["test_problems"] >= 500 for record in records.values())


def test_the_shipped_records_are_of_a_good_teacher_and_a_student_that_reads_but_solves_little(records) -> None:
    assert set(records) == set(CHECKPOINT_NAMES)
    check_accuracies(records)


@pytest.mark.parametrize("name", ["teacher", "teacher-b"])
def test_the_shipped_teachers_reach_the_recorded_accuracy(records, name: str) -> None:
    path = checkpoint_path(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    accuracy = measure.accuracy(model, load_processor(path), sample_problems("test", SAMPLE), "text")
    assert abs(accuracy - records[name]["accuracies"]["text"]) < SPREAD


def test_the_shipped_student_reads_pictures_and_cannot_solve_them(records) -> None:
    path = checkpoint_path("student")
    model, processor = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32), load_processor(path)
    test = sample_problems("test", SAMPLE)
    read = measure.transcription_accuracy(model, processor, test, "image")
    solved = measure.accuracy(model, processor, test, "image")
    assert abs(read - records["student"]["accuracies"]["image_transcription"]) < SPREAD
    assert abs(solved - records["student"]["accuracies"]["image"]) < SPREAD


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_same_seed_builds_the_same_weights(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(recipes, "POOL_SIZE", 50)
    monkeypatch.setattr(recipes, "TEST_PROBLEMS", 2)
    monkeypatch.setattr(measure, "MAX_NEW_TOKENS", 4)
    short = Recipe(steps=1, batch=4, lr=1e-3, warmup=2)
    monkeypatch.setattr(recipes, "TEACHER_RECIPE", replace(short, steps=3))
    stages = tuple(replace(stage, recipe=short) for stage in recipes.STUDENT_STAGES)
    monkeypatch.setattr(recipes, "STUDENT_STAGES", stages)
    steps = sum(recipe.steps for recipe in recipes.recipes_of(name))
    losses: list[float] = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipes.build(name, tmp_path / out, seed=seed, progress=lambda step, metrics: losses.append(metrics["loss"]))
    a, b, c = (load_file(tmp_path / out / name / "model.safetensors") for out in "abc")
    assert len(losses) == 3 * steps
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    recipes_used = json.loads((tmp_path / "a" / recipes.BUILD_FILE).read_text())[name]["recipes"]
    assert sum(recipe["steps"] for recipe in recipes_used) == steps


def test_show_prints_problems_and_saves_their_pictures(tmp_path) -> None:
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(app, ["show", "--n", "3", "--sheet", str(sheet)])
    assert result.exit_code == 0, result.output
    assert "test-000002" in result.output
    assert sheet.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "--only", "pupil"], "'pupil' is unknown"),
        (["show", "--split", "dev"], "split='dev' is unknown"),
        (["show", "--min-terms", "9"], "min_terms=9 and max_terms=4"),
    ],
)
def test_bad_options_are_refused_by_name(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_an_unknown_or_missing_checkpoint_is_a_clear_error(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="checkpoint='pupil' is unknown; choose one of teacher"):
        checkpoint_path("pupil")
    monkeypatch.setattr("vold_trainer.pocket.shipped.CHECKPOINTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="vold pocket build"):
        checkpoint_path("teacher")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_a_rebuild_reaches_the_accuracies(tmp_path, records, name: str) -> None:
    check_accuracies(records | {name: recipes.asdict(recipes.build(name, tmp_path))})
