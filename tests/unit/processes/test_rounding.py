"""Updates that half precision rounds away are warned of, before a run and in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW
from vold_trainer.config import OptimConfig, StudentConfig
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.rounding import RoundingWatch, WeightSample, can_move, rounding_warning
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.student.models import load_student


@given(st.floats(-4, 4, width=16), st.integers(-24, 0), st.sampled_from([torch.bfloat16, torch.float16]))
def test_a_weight_can_move_if_the_rounded_sum_differs(value, exponent, dtype):
    """Lengths halfway between two values are left to the rule for ties."""
    weight = torch.tensor(value).to(dtype)
    lr = 1.1 * 2.0**exponent
    rounded = (weight.double() + torch.copysign(torch.tensor(lr), weight.float()).double()).to(dtype)
    assert bool(can_move(weight, lr)) == bool(rounded != weight)


def layers(dtype, scale=0.05):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).to(dtype)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) * scale)
    return model


def steps(model, lr, count=1, warmup=0, dead=()):
    optimizer = AdamW(model.parameters(), lr=lr)
    watch = RoundingWatch(model, lr)
    for number in range(count + warmup):
        optimizer.param_groups[0]["lr"] = 0.0 if number < warmup else lr
        model(torch.ones(4, 64, dtype=next(model.parameters()).dtype)).float().square().sum().backward()
        for index in dead:
            model[index].weight.grad = None
        with watch.step(optimizer):
            optimizer.step()
        optimizer.zero_grad()


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_small_rates_in_half_precision_are_warned_of_twice(capsys):
    steps(layers(torch.bfloat16), 1e-6, count=3, warmup=2)
    text = said(capsys)
    assert text.count("Use student.dtype=float32 with student.compute=bfloat16") == 2
    assert "the weights are bfloat16, in which an update of optim.lr=1e-06 changes 0." in text
    assert "the first step at optim.lr=1e-06 changed " in text


@pytest.mark.parametrize(
    ("dtype", "lr"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3), (torch.float32, 1e-2)]
)
def test_rates_that_the_weights_can_take_are_not(capsys, dtype, lr):
    steps(layers(dtype), lr)
    assert not said(capsys)


def test_a_weight_without_gradient_is_not_counted(capsys):
    steps(layers(torch.bfloat16), 1e-2, dead=(0,))
    assert not said(capsys)


def test_what_is_measured_is_what_was_said_before(capsys):
    """Both are shares of the same weights."""
    model = layers(torch.bfloat16)
    before = [value.detach().clone() for value in model.parameters()]
    predicted = WeightSample(model).movable(1e-5)
    steps(model, 1e-5)
    changed = sum(int((a != b).sum()) for a, b in zip(before, model.parameters(), strict=True))
    total = sum(value.numel() for value in before)
    assert changed / total == pytest.approx(predicted, abs=0.02)
    assert f"changed {changed:,} of {total:,} bfloat16 weights" in said(capsys)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 60))
def test_a_sample_is_spread_over_all_weights(lengths, size):
    model = nn.ParameterList([nn.Parameter(torch.zeros(n, dtype=torch.bfloat16)) for n in lengths])
    with torch.no_grad():
        for index, value in enumerate(model):
            value.copy_(torch.arange(sum(lengths[:index]), sum(lengths[: index + 1])))
    sample = WeightSample(model, size)
    stride = max(1, sum(lengths) // size)
    places = torch.arange(0, sum(lengths), stride).to(torch.bfloat16).float()
    assert torch.equal(sample.values(), places)
    assert sample.count == len(places)


def test_a_student_of_half_precision_is_watched_and_adapters_are_not(capsys):
    student = load_student(StudentConfig(path="pocket:student", dtype="bfloat16"))
    prepared = PreparedModel(student, OptimConfig(lr=1e-6, warmup_steps=0), 2, 0, Ranks(make_accelerator()))
    for value in student.model.parameters():
        if value.requires_grad:
            value.grad = torch.ones_like(value)
    prepared.optimizer_step()
    assert said(capsys).count("student.dtype=float32") == 2
    adapted = load_student(StudentConfig(path="pocket:student", dtype="bfloat16", lora={"r": 2}))
    assert not rounding_warning(adapted.model, 1e-6)
