"""Divergences against closed forms, finite differences and TRL on the same tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from vold_trainer.objectives.divergences import forward_kl, generalised_jsd, renormalise, reverse_kl, sampled

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
SUPPORT = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    **{f"jsd-{beta}": lambda s, t, m, beta=beta: generalised_jsd(s, t, m, beta) for beta in BETAS},
}


def make_support(seed=0, shape=(3, 4, 6)):
    """Log-probabilities of K of many ids under student and teacher, float64, and a mask with at least two ids."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(*shape[:-1], 3 * shape[-1], generator=generator, dtype=torch.float64).log_softmax(-1)
        for _ in range(2)
    )
    mask = torch.rand(shape, generator=generator) > 0.3
    mask[..., :2] = True
    return student[..., : shape[-1]].clone().requires_grad_(), teacher[..., : shape[-1]].clone(), mask


@given(gap=st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_sampled_estimators_are_their_formulas(gap):
    value = torch.tensor(gap, dtype=torch.float64)
    assert sampled("k1", value) == -gap
    assert sampled("k2", value) == pytest.approx(gap**2 / 2)
    assert sampled("k3", value) == pytest.approx(torch.expm1(value).item() - gap, abs=1e-12)
    assert sampled("k3", value) >= 0


def test_the_expected_gradient_of_each_estimator():
    """Exact expectations over a vocabulary: k1 has gradient 0, k2 that of the reverse KL, k3 that of the forward KL."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, dtype=torch.float64).log_softmax(-1)
    student = logits.log_softmax(-1)
    probabilities = student.exp().detach()  # sampling from the student has no gradient

    def gradient(loss):
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    everything = torch.ones(7, dtype=torch.bool)
    found = {kind: gradient((probabilities * sampled(kind, teacher - student)).sum()) for kind in ("k1", "k2", "k3")}
    assert torch.allclose(found["k1"], torch.zeros(7, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(found["k2"], gradient(reverse_kl(student, teacher, everything)), atol=1e-12)
    assert torch.allclose(found["k3"], gradient(forward_kl(student, teacher, everything)), atol=1e-12)


@pytest.mark.parametrize("name", SUPPORT)
def test_gradients_are_those_of_finite_differences(name):
    student, teacher, mask = make_support()
    assert gradcheck(lambda values: SUPPORT[name](values, teacher, mask), (student,))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_divergences_over_a_support_by_hand(seed):
    student, teacher, mask = make_support(seed, (2, 5))
    for row in range(2):
        ids = mask[row]
        student_p = student[row][ids].exp() / student[row][ids].exp().sum()
        teacher_p = teacher[row][ids].exp() / teacher[row][ids].exp().sum()
        middle = 0.3 * teacher_p + 0.7 * student_p
        assert reverse_kl(student, teacher, mask)[row].item() == pytest.approx(
            (student_p * (student_p / teacher_p).log()).sum().item()
        )
        assert forward_kl(student, teacher, mask)[row].item() == pytest.approx(
            (teacher_p * (teacher_p / student_p).log()).sum().item()
        )
        by_hand = (
            0.3 * (teacher_p * (teacher_p / middle).log()).sum() + 0.7 * (student_p * (student_p / middle).log()).sum()
        )
        assert generalised_jsd(student, teacher, mask, 0.3)[row].item() == pytest.approx(by_hand.item(), abs=1e-12)


@pytest.mark.parametrize("name", SUPPORT)
def test_a_divergence_is_0_for_equal_distributions_and_positive_for_different_ones(name):
    student, teacher, mask = make_support(1)
    assert torch.allclose(SUPPORT[name](student, student.detach(), mask), torch.zeros(3, 4).double(), atol=1e-14)
    assert (SUPPORT[name](student, teacher, mask) > 0).all()
    shifted = student.detach() - 1.7  # the same distribution over the support, with less probability in total
    assert torch.allclose(SUPPORT[name](student, shifted, mask), torch.zeros(3, 4).double(), atol=1e-14)


@pytest.mark.parametrize("name", SUPPORT)
def test_masked_ids_are_never_read_and_an_empty_mask_gives_0(name):
    student, teacher, mask = make_support(2)
    mask[0, 0] = False
    mask[0, 1, 1:] = False
    poisoned = torch.where(mask, student.detach(), torch.nan).requires_grad_()
    found = SUPPORT[name](poisoned, torch.where(mask, teacher, torch.inf), mask)
    assert torch.equal(found, SUPPORT[name](student, teacher, mask))
    assert found[0, :2].tolist() == pytest.approx([0, 0], abs=1e-15)
    gradient = torch.autograd.grad(found.sum(), poisoned)[0]
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()


def test_renormalised_probabilities_sum_to_one():
    student, _, mask = make_support(3)
    assert torch.allclose(renormalise(student, mask).exp().sum(-1), torch.ones(3, 4).double())


def test_a_beta_outside_its_range_is_named():
    student, teacher, mask = make_support()
    with pytest.raises(ValueError, match=r"beta is 1\.5: give a number from 0"):
        generalised_jsd(student, teacher, mask, 1.5)


@pytest.mark.parametrize("beta", BETAS)
def test_over_the_whole_vocabulary_it_equals_trls_generalized_jsd(beta):
    gkd = pytest.importorskip("trl.experimental.gkd")
    torch.manual_seed(0)
    student_p, teacher_p = torch.randn(3, 4, 11, dtype=torch.float64), torch.randn(3, 4, 11, dtype=torch.float64)
    student_p.requires_grad_()
    labels = torch.where(torch.rand(3, 4) > 0.3, 1, -100)
    expected = gkd.GKDTrainer.generalized_jsd_loss(student_p, teacher_p, labels=labels, beta=beta, temperature=0.7)
    everything = torch.ones(3, 4, 11, dtype=torch.bool)
    each = generalised_jsd((student_p / 0.7).log_softmax(-1), (teacher_p / 0.7).log_softmax(-1), everything, beta)
    found = each[labels != -100].mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    gradients = [torch.autograd.grad(loss, student_p)[0] for loss in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_over_a_masked_support_it_equals_trls_server_distillation(beta):
    trl_trainer = pytest.importorskip("trl.experimental.server_distillation.server_distillation_trainer")
    student, teacher, mask = make_support(4)
    student_p = renormalise(student, mask)
    expected = trl_trainer._jsd_divergence(student_p, renormalise(teacher, mask), beta, mask).sum(-1)
    assert torch.allclose(generalised_jsd(student, teacher, mask, beta), expected, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_from_hidden_states_it_equals_the_loss_of_trls_distillation_trainer(beta):
    trainer = pytest.importorskip("trl.trainer.distillation_trainer")
    torch.manual_seed(0)
    hidden, other = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 12)
    head, other_head = torch.randn(17, 8), torch.randn(17, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected, _, count = trainer._chunked_divergence_loss(hidden, other, head, other_head, mask, beta, temperature=1.3)
    student_p, teacher_p = (hidden @ head.T / 1.3).log_softmax(-1), (other @ other_head.T / 1.3).log_softmax(-1)
    found = (
        generalised_jsd(student_p, teacher_p, torch.ones(2, 5, 17, dtype=torch.bool), beta)[mask.bool()].sum() / count
    )
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, hidden)[0] for loss in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-5)
