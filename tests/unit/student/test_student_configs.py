"""The students of the shipped configs, each at tiny random size: loaded as the config says, and moved by a step."""

import pytest
import torch
from paths import ROOT
from tiny_students import SHIPPED, tiny_student
from vold_trainer.config import TrainConfig, load
from vold_trainer.data import Example
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.parts import part_of

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_step_moves_what_the_config_lets_learn(name, tmp_path):
    folder = tiny_student(SHIPPED[name], tmp_path)
    config = load(TrainConfig, CONFIGS / f"{name}.yaml", [f"student.path={folder}"])
    student = load_student(config.student)
    student.model.train()
    owners = part_of(student.model)
    learning = {name for name, value in student.model.named_parameters() if value.requires_grad}
    if config.student.lora is None:
        assert {owners[name] for name in learning} == set(owners.values()) - set(config.student.freeze)
    else:
        assert learning == {name for name in owners if ".lora_" in name}
    assert {value.dtype for value in student.model.parameters() if value.requires_grad} == {torch.float32}
    optimizer, _ = make_optimizer(student.model, config.optim.model_copy(update={"warmup_steps": 0}), config.steps)
    before = {name: value.detach().clone() for name, value in student.model.named_parameters()}
    batch = make_batch(student, [Example("q", ({"role": "user", "content": "What is 2 + 2?"},), "")], [[40, 41, 42]])
    scores = CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N)
    (-scores.logprobs_N.mean()).backward()
    optimizer.step()
    moved = {name for name, value in student.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= learning


def test_every_config_that_trains_a_student_is_tried():
    trains = {path.stem for path in CONFIGS.glob("*.yaml") if f"vold train configs/{path.name}" in path.read_text()}
    assert trains == set(SHIPPED)
