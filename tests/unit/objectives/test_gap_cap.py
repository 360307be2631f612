"""The bound on the gap between teacher and student: in every objective with a teacher's term, and in no other."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import gradient, named, rollouts
from vold_trainer.objectives import (
    REGISTRY,
    Gkd,
    Hdpo,
    Kdrl,
    Mopd,
    Opd,
    OpdEntropy,
    OpdThenRl,
    OpdTopK,
    Srpo,
    Support,
    Vold,
)
from vold_trainer.objectives.gap import bound_support

SAMPLED = [
    Opd(),
    Opd(discount=0.5),
    Vold(masked=False),
    Vold(beta=0.7, divergence="k3"),
    OpdTopK(divergence="k2"),
    Kdrl(beta=0.5),
    Srpo(),
    Hdpo(beta=2.0),
    Mopd(alpha=0.3),
    OpdThenRl(switch=1),
]
OVER_IDS = [
    OpdTopK(),
    OpdTopK(divergence="forward-kl"),
    Vold(divergence="jsd", jsd_beta=0.3, masked=False),
    Vold(divergence="reverse-kl", masked=False),
    OpdEntropy(threshold=0.1),
    Gkd(),
    Gkd(beta=0.0),
]


def both(objective, batch):
    """The gradients by the sampled token's log-probabilities and by those of the support."""
    inputs = (batch.logprobs_CT, batch.support.student_CTK)
    return [
        torch.zeros_like(of) if found is None else found
        for of, found in zip(inputs, torch.autograd.grad(objective(batch).loss, inputs, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_objective_with_a_teachers_term_has_it_and_no_other(name):
    objective = REGISTRY[name]()
    assert ("gap_cap" in {field.name for field in fields(objective)}) == objective.needs.teacher
    if objective.needs.teacher:
        assert objective.gap_cap is None
        assert name in {other.name for other in SAMPLED + OVER_IDS}


@pytest.mark.parametrize("objective", SAMPLED, ids=named)
@given(seed=st.integers(0, 999), cap=st.floats(0.05, 4))
@settings(max_examples=8)
def test_a_capped_gap_is_that_of_a_teacher_at_the_bound(objective, seed, cap):
    batch = rollouts(seed)
    gap = batch.teacher_logprobs_CT - batch.logprobs_CT.detach()
    nearer = replace(batch, teacher_logprobs_CT=batch.logprobs_CT.detach() + gap.clamp(-cap, cap))
    capped = replace(objective, gap_cap=cap)
    assert capped(batch).loss.item() == pytest.approx(objective(nearer).loss.item(), abs=1e-12)
    assert torch.allclose(gradient(capped, batch), gradient(objective, nearer), atol=1e-12)


@pytest.mark.parametrize("objective", SAMPLED + OVER_IDS, ids=named)
def test_a_bound_that_no_gap_reaches_changes_nothing(objective):
    batch = rollouts(3)
    wide = replace(objective, gap_cap=1e6)
    tolerance = {"rtol": 0, "atol": 0} if objective in SAMPLED else {"rtol": 1e-12, "atol": 1e-15}
    for found, expected in zip(both(wide, batch), both(objective, batch), strict=True):
        assert torch.allclose(found, expected, **tolerance)


@pytest.mark.parametrize("objective", SAMPLED + OVER_IDS, ids=named)
def test_a_token_that_is_all_but_impossible_to_the_teacher_has_a_bounded_gradient(objective):
    batch = rollouts(4)
    impossible = torch.zeros_like(batch.mask_CT)
    impossible[:, 0] = True
    of_ids = impossible.unsqueeze(-1) & (torch.arange(batch.support.teacher_CTK.shape[-1]) == 0)
    batch = replace(
        batch,
        teacher_logprobs_CT=batch.teacher_logprobs_CT.masked_fill(impossible, -1e4),
        support=replace(batch.support, teacher_CTK=batch.support.teacher_CTK.masked_fill(of_ids, -1e4)),
    )
    capped = replace(objective, gap_cap=2.0)
    assert math.isfinite(capped(batch).loss.item())
    for found in both(capped, batch):
        assert found.isfinite().all()
        assert found.abs().max() < 10


@given(seed=st.integers(0, 999), cap=st.floats(0.05, 4))
@settings(max_examples=20)
def test_over_a_support_the_gradient_is_that_of_bounded_log_ratios(seed, cap):
    """d KL / d log s_k = s_k (d_k - sum_j s_j d_j) over the renormalised ids, with every d_k = log s_k - log t_k within
    the bound.
    """
    batch = rollouts(seed)
    found = torch.autograd.grad(OpdTopK(gap_cap=cap)(batch).loss, batch.support.student_CTK)[0]
    mask = batch.support.mask_CTK
    lengths = batch.mask_CT.sum(-1)
    expected = torch.zeros_like(found)
    moved = total = 0
    for c in range(len(lengths)):
        for t in range(int(lengths[c])):
            ids = mask[c, t]
            if ids.sum() < 2:
                continue
            student = batch.support.student_CTK[c, t, ids].detach().log_softmax(-1)
            ratio = student - batch.support.teacher_CTK[c, t, ids].log_softmax(-1)
            bounded = ratio.clamp(-cap, cap)
            weight = student.exp() / (lengths[c] * len(lengths))
            expected[c, t, ids] = weight * (bounded - (student.exp() * bounded).sum())
            moved, total = moved + int((ratio.abs() > cap).sum()), total + len(ratio)
    assert torch.allclose(found, expected, atol=1e-12)
    assert OpdTopK(gap_cap=cap)(batch).metrics["support/capped"] == pytest.approx(moved / total)


def test_the_mass_of_a_support_is_that_before_the_bound():
    batch = rollouts(5)
    plain, capped = OpdTopK()(batch).metrics, OpdTopK(gap_cap=0.1)(batch).metrics
    for name in ("support/ids", "support/student_mass", "support/teacher_mass"):
        assert capped[name] == plain[name]
    assert "support/capped" not in plain


@given(seed=st.integers(0, 999), cap=st.floats(0.05, 3))
@settings(max_examples=20)
def test_a_bounded_support_keeps_its_order_and_masked_ids(seed, cap):
    support = rollouts(seed).support
    bounded, moved = bound_support(Support(support.student_CTK, support.teacher_CTK, support.mask_CTK), cap)
    assert not moved[~support.mask_CTK].any()
    student = bounded.student_CTK.detach()
    known = support.mask_CTK.any(-1)
    ratio = bounded.teacher_CTK - torch.where(support.mask_CTK, student, -torch.inf).log_softmax(-1)
    assert (ratio[support.mask_CTK & known.unsqueeze(-1)].abs() <= cap + 1e-12).all()
