"""The weights of the start, put in the place of the present ones for a while and taken away again."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from vold_trainer.errors import UsageError
from vold_trainer.processes.start_weights import StartWeights


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    return model.train()


def test_inside_the_student_is_that_of_the_start_and_afterwards_that_of_before():
    model = make_model()
    start = StartWeights(SimpleNamespace(deepspeed=False, module=model), model)
    assert len(start.copies) == 3, "what is frozen is not copied"
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    inputs = torch.rand(5, 3)
    expected = model.eval()(inputs).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        trained = {name: value.detach().clone() for name, value in model.named_parameters()}
        with start.active(), torch.no_grad():
            assert torch.equal(model(inputs), expected), "without dropout"
        with pytest.raises(ZeroDivisionError), start.active():
            raise ZeroDivisionError
        assert model.training
        assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
        assert not torch.equal(trained["0.weight"], first["0.weight"])
        assert all(torch.equal(start.copies[name], first[name]) for name in start.copies)


def test_deepspeed_is_refused_with_the_remedy():
    model = make_model()
    with pytest.raises(UsageError, match=r"objective\.kl_beta: under DeepSpeed .* reference.url"):
        StartWeights(SimpleNamespace(deepspeed=True, module=model), model)
