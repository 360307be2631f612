"""The students of the shipped configs, each at tiny random size: loaded as the config says, and moved by a step."""

import pytest
import torch
from paths import ROOT
from tiny_students import CONFIG_FAMILIES, tiny_student
from vold_trainer.config import TrainConfig, load
from vold_trainer.data import Example
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.parts import parameter_parts

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("name", CONFIG_FAMILIES)
def test_a_step_changes_the_trainable_parameters_of_the_config(name, tmp_path):
    folder = tiny_student(CONFIG_FAMILIES[name], tmp_path)
    config = load(TrainConfig, CONFIGS / f"{name}.yaml", [f"student.path={folder}"])
    student = load_student(config.student, [])  # of a teacher without tokens of its own
    student.model.train()
    parts = parameter_parts(student.model)
    trainable = {name for name, value in student.model.named_parameters() if value.requires_grad}
    if config.student.lora is None:
        assert {parts[name] for name in trainable} == set(parts.values()) - set(config.student.freeze)
    else:
        assert trainable == {name for name in parts if ".lora_" in name}
    assert {value.dtype for value in student.model.parameters() if value.requires_grad} == {torch.float32}
    optimizer, _ = make_optimizer(student.model, config.optim.model_copy(update={"warmup_steps": 0}), config.steps)
    before = {name: value.detach().clone() for name, value in student.model.named_parameters()}
    batch = make_batch(student, [Example("q", ({"role": "user", "content": "What is 2 + 2?"},), "")], [[40, 41, 42]])
    scores = CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N)
    (-scores.logprobs_N.mean()).backward()
    optimizer.step()
    moved = {name for name, value in student.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= trainable


def test_every_config_that_trains_a_student_is_tried():
    trains = {path.stem for path in CONFIGS.glob("*.yaml") if f"vold train configs/{path.name}" in path.read_text()}
    assert trains == set(CONFIG_FAMILIES)
