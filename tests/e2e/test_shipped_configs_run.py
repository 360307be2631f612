"""Every second stage that ships runs for real: a tiny checkpoint of its family, a tiny teacher that reads its ids, and
the config as it is, but for paths, services, sizes and how long it runs.
"""

import json
import math

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file
from servers import serving
from tiny_students import CONFIG_FAMILIES, VISION_FAMILIES, tiny_student
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from vold_trainer.config import StudentConfig, TrainConfig, load
from vold_trainer.data.images import LazyImage
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.runs.checkpoint import latest_checkpoint
from vold_trainer.student.added_tokens import with_tokens
from vold_trainer.student.models import load_student
from vold_trainer.training.train import run_train

CONFIGS = ROOT / "configs"
SIZES = ("rollout.prompts=2", "rollout.max_tokens=5", "steps=2", "threads=1")
READS = {"qwen2.5-vl": "qwen", "qwen3-vl": "qwen", "qwen3": "qwen", "llava-onevision": "llava", "gemma3": "gemma"}
"""Which teacher reads a family's ids."""


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    root = tmp_path_factory.mktemp("students")
    return {family: tiny_student(family, root / family) for family in CONFIG_FAMILIES.values()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, students):
    """One service with a tiny Qwen3 for each of the tokenizers."""
    root = tmp_path_factory.mktemp("teachers")
    models = []
    for family, name in {name: family for family, name in READS.items()}.items():
        tokenizer = AutoTokenizer.from_pretrained(students[name])
        tiny_student("qwen3", root / family, tokenizer, seed=1)
        end_alike(students[name], root / family)
        models += ["--model", f"{family}={root / family}"]
    with serving("teacher", *models) as server:
        yield server


def end_alike(student, teacher):
    """What ends the student's answers ends the teacher's."""
    settings = json.loads((teacher / "generation_config.json").read_text())
    ends = json.loads((student / "generation_config.json").read_text())["eos_token_id"]
    (teacher / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": ends}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows by whether the student reads pictures; as many as a step has prompts, so that each step has them all. What
    students that were taught nothing write is judged by the config's verifier in one, and sometimes right in the other.
    """
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "shape.png")
    boxed = {"prompt": "What is 1 + 1?", "reference": "2"}
    judged = {"verifier": "regex", "parameters": {"accept": ["final_part"], "dot_matches_newline": True}}
    letter = {"prompt": "Write a letter from a to m.", "reference": ".*[a-m].*", **judged}
    twin = "The picture shows the letters from a to m. Write one of them."
    picture = {**letter, "prompt": "Write a letter of the picture.", "image": "shape.png", "twin": twin}
    write_lines(folder / "text.jsonl", [boxed, letter])
    write_lines(folder / "pictures.jsonl", [boxed, picture])
    return {False: folder / "text.jsonl", True: folder / "pictures.jsonl"}


@pytest.fixture
def decoded_images(monkeypatch):
    """Names each image when it is decoded."""
    names, decode = [], LazyImage._decode

    def note(image, source):
        names.append(image.where)
        return decode(image, source)

    monkeypatch.setattr(LazyImage, "_decode", note)
    return names


@pytest.mark.parametrize("name", CONFIG_FAMILIES)
def test_a_shipped_config_trains_two_steps_and_exports(
    name, tmp_path, students, teacher, verifier, data, decoded_images
):
    family, out = CONFIG_FAMILIES[name], tmp_path / "run"
    shipped = load(TrainConfig, CONFIGS / f"{name}.yaml")
    overrides = [f"out={out}", f"student.path={students[family]}", f"data.source={data[family in VISION_FAMILIES]}"]
    overrides += [f"verifier.url={verifier.grpc}"]
    if shipped.teacher is not None:
        overrides += [f"teacher.url={teacher.grpc}", f"teacher.model={READS[family]}"]
    config = load(TrainConfig, CONFIGS / f"{name}.yaml", [*overrides, *SIZES])
    run_train(config)

    rows = read_json_lines(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["missing/teacher"] == row["missing/verifier"] == 0
        assert row.get("missing/masked_positions", 0) == 0
        assert ("teacher/gap" in row) == (shipped.teacher is not None)
    assert any(row["grad_norm"] > 0 for row in rows)
    assert any(row["reward/std"] > 0 for row in rows)
    assert len(decoded_images) == (2 if family in VISION_FAMILIES else 0), "the picture once a step"
    samples = read_json_lines(out / "rollouts.jsonl")
    assert any("[image]" in sample["prompt"] for sample in samples) == (family in VISION_FAMILIES)
    assert {span["lane"] for span in read_json_lines(out / "timeline.jsonl")} >= {"generate", "verifier", "optimise"}
    about = json.loads((out / "run.json").read_text())
    assert (about["objective"], "teacher" in about) == (shipped.objective.name, shipped.teacher is not None)
    assert load(TrainConfig, out / "config.yaml") == with_tokens(config, ())
    assert latest_checkpoint(out).step == 2

    exported(config, out, family)


def exported(config, out, family):
    """`model/` is an ordinary folder with every weight in it, the learned ones those of the checkpoint."""
    auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    model, found = auto.from_pretrained(out / "model", output_loading_info=True)
    assert not any(found.values()), found
    assert model.dtype == getattr(torch, config.student.dtype)
    again = load_student(StudentConfig(path=str(out / "model"), dtype=config.student.dtype))
    assert again.processor is again.tokenizer or again.processor.image_processor is not None
    learned = latest_checkpoint(out).tensors("learning")
    if config.student.lora is None:
        before = dict(auto.from_pretrained(config.student.path).named_parameters())
        after = dict(model.named_parameters())
        assert all(torch.equal(after[key], value) for key, value in learned.items())
        moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert set() < moved <= set(learned)
    else:
        adapters = load_file(out / "model" / "adapter" / "adapter_model.safetensors")
        assert any(value.any() for key, value in adapters.items() if "lora_B" in key)
