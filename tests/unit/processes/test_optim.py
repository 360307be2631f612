"""The optimizer, its schedule, and its state from a checkpoint."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW
from transformers import get_scheduler
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


def rates(config: OptimConfig, steps: int) -> list[float]:
    optimizer, schedule = make_optimizer(model(), config, steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@given(
    steps=st.integers(1, 12),
    warmup=st.integers(0, 15),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
)
@settings(max_examples=30)
def test_every_step_of_a_schedule_has_a_rate(steps, warmup, schedule):
    config = OptimConfig(lr=0.5, warmup_steps=warmup, schedule=schedule)
    found = rates(config, steps)
    assert all(0 < rate <= 0.5 for rate in found)
    assert found[:warmup] == pytest.approx([0.5 * (step + 1) / warmup for step in range(min(steps, warmup))])
    if steps > warmup:
        assert found[warmup] == 0.5
        assert (found[-1] < 0.5) == (schedule != "constant" and steps > warmup + 1)
        assert found[warmup:] == sorted(found[warmup:], reverse=True)


@pytest.mark.parametrize(("schedule", "name"), [("cosine", "cosine"), ("linear", "linear")])
def test_a_decay_is_that_of_transformers(schedule, name):
    """After the warm-up, to the last digit."""
    config = OptimConfig(lr=3e-4, warmup_steps=3, schedule=schedule)
    theirs = get_scheduler(name, AdamW(model().parameters(), lr=config.lr), num_warmup_steps=3, num_training_steps=40)
    expected = [config.lr * theirs.lr_lambdas[0](step) for step in range(3, 40)]
    assert rates(config, 40)[3:] == expected


def test_a_decay_with_a_floor_is_that_of_transformers():
    config = OptimConfig(lr=3e-4, min_lr=6e-5, warmup_steps=3, schedule="cosine")
    theirs = get_scheduler(
        "cosine_with_min_lr",
        AdamW(model().parameters(), lr=config.lr),
        num_warmup_steps=3,
        num_training_steps=40,
        scheduler_specific_kwargs={"min_lr": config.min_lr},
    )
    expected = [config.lr * theirs.lr_lambdas[0](step) for step in range(3, 40)]
    assert rates(config, 40)[3:] == pytest.approx(expected, rel=1e-12)
    linear = rates(config.model_copy(update={"schedule": "linear"}), 40)[3:]
    assert linear == pytest.approx([6e-5 + 2.4e-4 * (40 - step) / 37 for step in range(3, 40)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 2e-4, "schedule": "cosine"}, "min_lr is 0.0002, above lr 0.0001"),
        ({"min_lr": 1e-5}, "schedule constant has no end: choose cosine or linear"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(lr=1e-4, **options)
