"""Gradients as views of DDP's buckets, cleared in place, make the same steps as gradients that are set to None."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vold_trainer.config import StudentConfig
from vold_trainer.pocket.world import make_examples
from vold_trainer.processes.gradients import Gradients
from vold_trainer.processes.sharding import trainable_parameters
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.parts import parameter_parts


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def student():
    return load_student(StudentConfig(path="pocket:student"))


def step(module, optimizer, gradients, examples, no_sync):
    """Two micro-batches and an optimizer step. Returns the gradients before they are cleared."""
    student = gradients.student
    for number, example in enumerate(examples):
        batch = make_batch(student, [example], [[20, 21, 22 + number]])
        with torch.enable_grad(), no_sync(last=number == len(examples) - 1):
            (-module(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N.sum()).backward()
    found = {name: value.grad for name, value in trainable_parameters(student.model).items()}
    optimizer.step()
    gradients.clear()
    return found


def prepare(student, *, ddp):
    """(module, optimizer, gradients, no_sync) of a copy of the student."""
    student = copy.deepcopy(student)
    module = CompletionScorer(student.model)
    if ddp:
        module = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(trainable_parameters(student.model).values(), lr=1e-3, weight_decay=0.1)
    gradients = Gradients(student, module, optimizer)
    gradients.student = student

    def no_sync(*, last):
        return module.no_sync() if ddp and not last else torch.enable_grad()

    return module, optimizer, gradients, no_sync


def test_the_views_stay_and_parameters_without_gradient_are_left_alone(group, student):
    """With a step with images between two without: the projector's moments must not decay in those."""
    text, images = make_examples("train", 2, modality="text"), make_examples("train", 2, modality="image")
    plain, spread = prepare(student, ddp=False), prepare(student, ddp=True)
    parts = parameter_parts(student.model)
    places = []
    for examples in (text, images, text):
        step(*plain[:3], examples, plain[3])
        found = step(*spread[:3], examples, spread[3])
        for name, gradient in found.items():
            assert (gradient is None) == (examples is text and parts[name] == "projector"), name
        model = spread[2].student.model
        cleared = {name: value.grad for name, value in trainable_parameters(model).items()}
        assert all(value is None for name, value in cleared.items() if parts[name] == "projector")
        kept = {name: value for name, value in cleared.items() if parts[name] != "projector"}
        assert not any(value.any() for value in kept.values())
        assert len({value.untyped_storage().data_ptr() for value in kept.values()}) < len(kept) / 2
        places.append({name: value.data_ptr() for name, value in kept.items()})
    assert places[0] == places[1] == places[2]
    expected = plain[2].student.model.state_dict()
    for name, value in spread[2].student.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_without_ddp_gradients_are_set_to_none(student):
    module, optimizer, gradients, no_sync = prepare(student, ddp=False)
    step(module, optimizer, gradients, make_examples("train", 1, modality="text"), no_sync)
    assert all(value.grad is None for value in module.parameters())
