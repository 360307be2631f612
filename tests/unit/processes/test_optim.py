"""The optimizer, and its state from a checkpoint."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from vold_trainer.config import OptimConfig
from vold_trainer.processes.optim import make_optimizer, restore_state


def model(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(device)


def train(module, optimizer, steps):
    for number in range(steps):
        module(torch.full((2, 7), 0.1 * (number + 1))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_optimizer_is_fused_on_cuda_alone(monkeypatch):
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        optimizer, _ = make_optimizer(model(), OptimConfig(), 10)
        assert [(group["fused"], group["foreach"]) for group in optimizer.param_groups] == [(cuda or None, None)] * 2


def test_a_fused_step_is_the_plain_step_but_for_rounding():
    plain, fused = model(), model()
    train(plain, AdamW(plain.parameters(), lr=1e-2), 5)
    train(fused, AdamW(fused.parameters(), lr=1e-2, fused=True), 5)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", [None, True])
def test_a_restored_state_goes_on_as_the_undisturbed(fused):
    undisturbed, resumed = model(), model()
    train(undisturbed, AdamW(undisturbed.parameters(), lr=1e-2, fused=fused), 2)
    optimizer = AdamW(resumed.parameters(), lr=1e-2, fused=fused)
    train(resumed, optimizer, 1)
    saved = {parameter: {k: v.clone() for k, v in state.items()} for parameter, state in optimizer.state.items()}
    optimizer = AdamW(resumed.parameters(), lr=1e-2, fused=fused)
    for parameter, state in saved.items():
        for name, value in state.items():
            restore_state(optimizer, parameter, name, value)
    resumed(torch.full((2, 7), 0.2)).square().sum().backward()
    optimizer.step()
    for one, other in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (None, "cpu")])
def test_a_restored_step_is_where_the_optimizer_keeps_it(fused, device):
    """The fused kernel refuses a step on another device than its parameter's."""
    parameter = nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = AdamW([parameter], fused=fused)
    restore_state(optimizer, parameter, "exp_avg", torch.ones(3))
    restore_state(optimizer, parameter, "step", torch.tensor(4.0))
    assert optimizer.state[parameter]["step"].device.type == device
    assert optimizer.state[parameter]["exp_avg"].device.type == "meta"
