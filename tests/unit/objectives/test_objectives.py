"""Objectives against closed forms and finite differences. Against TRL: test_objectives_trl.py."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import CASES
from torch.autograd import gradcheck
from vold_trainer.objectives import (
    REGISTRY,
    Cispo,
    Dapo,
    DrGrpo,
    Gkd,
    Grpo,
    Gspo,
    Hdpo,
    Kdrl,
    Mopd,
    Needs,
    Opd,
    OpdEntropy,
    OpdThenRl,
    OpdTopK,
    Rollouts,
    Srpo,
    Support,
    Vold,
)
from vold_trainer.objectives.base import with_entropy_bonus
from vold_trainer.objectives.opd import discounted
from vold_trainer.objectives.policy import Signal
from vold_trainer.objectives.reference import reference_kl, with_reference_kl

RECORDED = [
    Grpo(),
    Grpo(normalise="token"),
    Grpo(rollout_cap=1.1),
    DrGrpo(),
    Dapo(),
    Gspo(eps_low=0.05, eps_high=0.05),
    Cispo(eps_max=1.1),
    Opd(),
    Opd(normalise="token", discount=0.5),
    OpdTopK(),
    OpdTopK(divergence="forward-kl", normalise="token"),
    OpdTopK(divergence="k3"),
    OpdEntropy(threshold=0.5, weight=0.7),
    Vold(),
    Vold(masked=False),
    Vold(beta=0.7, normalise="token"),
    Vold(divergence="jsd", jsd_beta=0.3, masked=False),
    Vold(divergence="k3", rollout_cap=1.1),
    Kdrl(beta=0.5),
    Kdrl(beta=0.5, mask="response"),
    Kdrl(beta=0.5, mask="group"),
    Srpo(),
    Hdpo(),
    Mopd(alpha=0.3),
    Mopd(alpha=0.0),
    OpdThenRl(switch=1),
    OpdThenRl(switch=0),
    Gkd(),
    Gkd(beta=0.0, normalise="constant"),
]
"""Objectives whose numbers are kept in a file."""
OBJECTIVES = [*RECORDED, Vold(beta=0.7, anneal=0.2), OpdThenRl(switch="plateau")]


def named(objective):
    """The objective's name and the options that differ from the defaults."""
    default = type(objective)()
    changed = [f"{key}={value}" for key, value in vars(objective).items() if value != getattr(default, key)]
    return "-".join([objective.name, *changed])


def rollouts(seed=0, C=6, T=5, K=4, *, on_policy=False, dtype=torch.float64):
    """Random rollouts in groups of 2, with ragged lengths, a missing reward, masked teacher positions and ids."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=dtype)  # noqa: E731
    logprobs = (-3 * rand(C, T)).requires_grad_()
    lengths = torch.randint(1, T + 1, (C,), generator=generator)
    correct = torch.tensor([True, False] * C)[:C]
    rewarded = torch.ones(C, dtype=torch.bool)
    rewarded[-1] = False
    advantages = torch.where(rewarded, rand(C) * 2 - 1, 0.0)
    batch = Rollouts(
        logprobs_CT=logprobs,
        old_logprobs_CT=logprobs.detach() if on_policy else logprobs.detach() + 0.6 * (rand(C, T) - 0.5),
        mask_CT=torch.arange(T) < lengths.unsqueeze(-1),
        advantages_C=advantages,
        rewarded_C=rewarded,
        correct_C=correct & rewarded,
        teacher_logprobs_CT=-3 * rand(C, T),
        teacher_mask_CT=rand(C, T) > 0.2,
    )
    ids = [torch.randn(C, T, 3 * K, generator=generator, dtype=dtype).log_softmax(-1)[..., :K] for _ in range(2)]
    support = Support(ids[0].clone().requires_grad_(), ids[1], rand(C, T, K) > 0.2)
    unsolved = torch.zeros(C, dtype=torch.bool)
    unsolved[2:4] = True  # a group in which both completions are wrong
    return replace(
        batch,
        correct_C=batch.correct_C & ~unsolved,
        unsolved_C=unsolved,
        teacher_entropy_CT=torch.where(rand(C, T) > 0.1, 2 * rand(C, T), torch.nan),
        rollout_logprobs_CT=batch.old_logprobs_CT + 0.6 * (rand(C, T) - 0.5),
        support=support,
        max_tokens=T,
    )


def gradient(objective, batch):
    return torch.autograd.grad(objective(batch).loss, batch.logprobs_CT)[0]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
@pytest.mark.parametrize("seed", range(2))
def test_gradient_is_that_of_finite_differences(objective, seed):
    batch = rollouts(seed)
    objective = replace(objective, kl_ratio=False)  # a weight without a gradient
    base = batch.logprobs_CT.detach().clone()  # gradcheck moves its inputs in place

    def loss(logprobs_CT, student_CTK):
        moved = replace(batch, logprobs_CT=logprobs_CT, support=replace(batch.support, student_CTK=student_CTK))
        if isinstance(
            objective, Signal | OpdEntropy
        ):  # the gap is an advantage, which has no gradient: keep it constant
            moved = replace(moved, teacher_logprobs_CT=batch.teacher_logprobs_CT - base + logprobs_CT)
        if isinstance(objective, Cispo):  # nor has its ratio
            moved = replace(moved, old_logprobs_CT=batch.old_logprobs_CT - base + logprobs_CT.detach())
        return objective(moved).loss

    inputs = (batch.logprobs_CT, batch.support.student_CTK)
    assert gradcheck(lambda *values: loss(*values) + 0 * sum(value.sum() for value in values), inputs)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_objective_is_a_name_with_defaults(name):
    objective = REGISTRY[name]()
    assert objective.name == name
    assert any(type(other) is type(objective) for other in OBJECTIVES)
    assert objective.needs_at(0).teacher <= objective.needs.teacher


def test_the_defaults_are_the_papers():
    assert (Grpo().eps_low, Grpo().eps_high, Grpo().advantage_std) == (0.2, 0.2, True)
    assert (DrGrpo().normalise, DrGrpo().advantage_std) == ("constant", False)
    assert (Dapo().eps_low, Dapo().eps_high, Dapo().normalise, Dapo().overlong) == (0.2, 0.28, "token", 0.2)
    assert (Gspo().eps_low, Gspo().eps_high, Gspo().ratio) == (3e-4, 4e-4, "sequence")
    assert Cispo().eps_max == 5
    assert (Opd().coefficient, Opd().discount) == (1, 0)
    assert (Vold().beta, Vold().masked, Vold().eps_low, Vold().eps_high) == (0.1, True, 0.2, 0.3)
    assert (OpdThenRl().switch, Gkd().student_share, Gkd().beta) == (60, 0.5, 0.5)
    assert (OpdTopK().divergence, OpdTopK().support, OpdTopK().top_k) == ("reverse-kl", "student", 16)
    assert (OpdEntropy().threshold, OpdEntropy().top_k) == (0.8, 16)
    assert [Kdrl().beta_at(step) for step in (0, 1, 80, 1000)] == pytest.approx([5e-3, 4.95e-3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("objective", "needs"),
    [
        (Grpo(), Needs(reward=True)),
        (Grpo(rollout_cap=2.0), Needs(reward=True, rollout_logprobs=True)),
        (Opd(), Needs(teacher=True)),
        (Vold(), Needs(reward=True, teacher=True)),
        (Vold(divergence="jsd", top_k=8), Needs(reward=True, teacher=True, candidates=8)),
        (OpdTopK(top_k=20), Needs(teacher=True, candidates=20)),
        (OpdTopK(support="teacher", mask_special=True), Needs(teacher=True, top_k=16, mask_special=True)),
        (OpdEntropy(), Needs(teacher=True, top_k=16, entropy=True)),
        (Mopd(), Needs(reward=True, teacher=True)),
        (Mopd(alpha=0.0), Needs(teacher=True)),
        (OpdThenRl(), Needs(reward=True, teacher=True)),
        (Gkd(), Needs(teacher=True, top_k=16, traces=True)),
        (Gkd(student_share=1.0), Needs(teacher=True, top_k=16)),
    ],
    ids=str,
)
def test_the_needs_of_each_objective(objective, needs):
    assert objective.needs == needs


def test_reinforcement_learning_after_distillation_needs_no_teacher():
    objective = OpdThenRl(switch=3)
    assert [objective.needs_at(step).teacher for step in range(5)] == [True, True, True, False, False]
    assert [objective.needs_at(step).reward for step in range(5)] == [False, False, False, True, True]


def test_until_the_step_of_a_plateau_is_known_a_run_distils():
    objective = OpdThenRl(switch="plateau")
    assert objective.needs == Needs(reward=True, teacher=True)
    assert all(objective.needs_at(step) == Needs(teacher=True) for step in (0, 10_000))


def advantages_by_hand(objective, batch):
    """The advantage of each token at ratio 1, as docs/objectives.md defines it."""
    C, T = batch.mask_CT.shape
    out = torch.zeros(C, T, dtype=torch.float64)
    for c in range(C):
        for t in range(T):
            if not batch.mask_CT[c, t]:
                continue
            known = bool(batch.teacher_mask_CT[c, t])
            d = (batch.teacher_logprobs_CT - batch.logprobs_CT.detach())[c, t] if known else 0.0
            A, rewarded, right = batch.advantages_C[c], bool(batch.rewarded_C[c]), bool(batch.correct_C[c])
            out[c, t] = {
                "grpo": A,
                "opd": d,
                "kdrl": A
                + 0.5
                * d
                * {"none": True, "response": rewarded and not right, "group": batch.unsolved_C[c]}[
                    getattr(objective, "mask", "none")
                ],
                "srpo": (A if right else d) if rewarded else 0.0,
                "hdpo": A + (0.1 * d if batch.unsolved_C[c] else 0.0),
                "mopd": d + 0.3 * A,
                "opd-then-rl": d if batch.step < 1 else A,
            }[objective.name]
    return out


@pytest.mark.parametrize(
    ("objective", "step"),
    [
        (Grpo(), 0),
        (Opd(), 0),
        (Kdrl(beta=0.5, normalise="sequence"), 0),
        (Kdrl(beta=0.5, mask="response", normalise="sequence"), 0),
        (Kdrl(beta=0.5, mask="group", normalise="sequence"), 0),
        (Srpo(), 0),
        (Hdpo(), 0),
        (Mopd(alpha=0.3), 0),
        (OpdThenRl(switch=1), 0),
        (OpdThenRl(switch=1), 1),
    ],
    ids=lambda value: value if isinstance(value, int) else named(value),
)
@pytest.mark.parametrize("seed", range(3))
def test_at_ratio_one_the_gradient_is_the_policy_gradient_of_its_row(objective, step, seed):
    batch = replace(rollouts(seed, on_policy=True), step=step)
    lengths = batch.mask_CT.sum(-1, keepdim=True)
    expected = -advantages_by_hand(objective, batch) / (lengths * len(lengths))
    assert torch.allclose(gradient(objective, batch), expected, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_divergence_losses_over_a_support_by_hand(seed):
    """opd-top-k, gkd and the second half of opd-entropy, position by position."""
    batch = rollouts(seed)
    lengths = batch.mask_CT.sum(-1)
    sums = {"reverse": 0.0, "jsd": 0.0, "forward": 0.0}
    for c in range(6):
        for t in range(int(lengths[c])):
            ids = batch.support.mask_CTK[c, t]
            student = batch.support.student_CTK[c, t][ids].softmax(-1)
            teacher = batch.support.teacher_CTK[c, t][ids].softmax(-1)
            middle = (student + teacher) / 2
            share = 1 / (6 * lengths[c].item())
            sums["reverse"] += share * (student * (student / teacher).log()).sum().item()
            sums["jsd"] += (
                share / 2 * ((student * (student / middle).log()) + (teacher * (teacher / middle).log())).sum().item()
            )
            if batch.teacher_entropy_CT[c, t] > 0.8:
                sums["forward"] += share * (teacher * (teacher / student).log()).sum().item()
    assert OpdTopK()(batch).loss.item() == pytest.approx(sums["reverse"])
    assert OpdTopK(coefficient=3.0)(batch).loss.item() == pytest.approx(3 * sums["reverse"])
    assert Gkd()(batch).loss.item() == pytest.approx(sums["jsd"])
    found = OpdEntropy(weight=0.5)(batch)
    assert found.metrics["loss/forward_kl"] == pytest.approx(sums["forward"])
    assert found.loss.item() == pytest.approx(Opd()(batch).loss.item() + 0.5 * sums["forward"])


def test_over_all_ids_the_reverse_kl_has_the_expected_gradient_of_opd():
    """The expected gradient of `opd` over all tokens equals that of opd-top-k with all ids in the support."""
    torch.manual_seed(0)
    V = 5
    logits = torch.randn(V, dtype=torch.float64, requires_grad=True)
    student, teacher = logits.log_softmax(-1), torch.randn(V, dtype=torch.float64).log_softmax(-1)
    all_true = torch.ones(V, 1, dtype=torch.bool)
    each = Rollouts(
        logprobs_CT=student.unsqueeze(-1), old_logprobs_CT=student.detach().unsqueeze(-1), mask_CT=all_true,
        advantages_C=torch.zeros(V), rewarded_C=all_true[:, 0], correct_C=all_true[:, 0],
        teacher_logprobs_CT=teacher.unsqueeze(-1), teacher_mask_CT=all_true,
    )  # fmt: skip
    expected_loss = 0
    for token in range(V):
        pick = slice(token, token + 1)
        one = replace(
            each, logprobs_CT=each.logprobs_CT[pick], old_logprobs_CT=each.old_logprobs_CT[pick],
            mask_CT=all_true[pick], teacher_logprobs_CT=each.teacher_logprobs_CT[pick], teacher_mask_CT=all_true[pick],
        )  # fmt: skip
        expected_loss = expected_loss + student[token].exp().detach() * Opd()(one).loss
    support = Support(student.view(1, 1, V), teacher.view(1, 1, V), torch.ones(1, 1, V, dtype=torch.bool))
    exact = OpdTopK()(replace(one, support=support)).loss
    found, expected = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (expected_loss, exact))
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_discounted_advantage_includes_later_tokens():
    assert discounted(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist() == [[3.0, 4.0, 4.0]]
    values = torch.rand(3, 4)
    assert torch.equal(discounted(values, 0.0), values)


def test_truncated_importance_sampling_weights_each_token():
    batch = rollouts(1)
    weights = (batch.old_logprobs_CT - batch.rollout_logprobs_CT).exp().clamp(max=1.05)
    plain, weighted = gradient(Grpo(), batch), gradient(Grpo(rollout_cap=1.05), batch)
    assert torch.allclose(weighted, plain * weights, atol=1e-15)
    figures = Grpo(rollout_cap=1.05)(batch).metrics
    assert 0 < figures["mismatch/capped"] < 1
    same = replace(batch, rollout_logprobs_CT=batch.old_logprobs_CT)
    assert torch.equal(gradient(Grpo(rollout_cap=2.0), same), plain)


def test_a_sequence_ratio_weights_all_its_tokens_alike():
    batch = rollouts(2)
    gap = torch.where(batch.mask_CT, batch.logprobs_CT.detach() - batch.old_logprobs_CT, 0.0)
    lengths = batch.mask_CT.sum(-1, keepdim=True)
    ratio = (gap.sum(-1, keepdim=True) / lengths).exp()
    wide = Gspo(eps_low=0.9, eps_high=9.0)
    expected = -ratio * batch.advantages_C.unsqueeze(-1) * batch.mask_CT / (lengths * 6)
    assert torch.allclose(gradient(wide, batch), expected, atol=1e-15)


def test_a_missing_input_is_named():
    bare = replace(
        rollouts(0), support=None, teacher_logprobs_CT=None, teacher_entropy_CT=None, rollout_logprobs_CT=None,
        unsolved_C=None, max_tokens=0,
    )  # fmt: skip
    for objective, message in [
        (Opd(), "teacher_logprobs_CT is None"),
        (OpdTopK(), "support is None"),
        (OpdEntropy(), "teacher_entropy_CT is None"),
        (Grpo(rollout_cap=2.0), "rollout_logprobs_CT is None"),
        (DrGrpo(), "max_tokens is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            objective(bare)
    with pytest.raises(ValueError, match="unsolved_C is None"):
        Hdpo()(replace(rollouts(0), unsolved_C=None))


@given(seed=st.integers(0, 10_000), beta=st.floats(0, 2), token=st.booleans())
@settings(max_examples=40, deadline=None)
def test_masked_k2_at_ratio_one_is_a_policy_gradient(seed, beta, token):
    """d/dtheta [GRPO + beta (1 - r) k2] = the policy gradient with A - beta (1 - r) sg(log pi - log pi_T)."""
    batch = rollouts(seed, on_policy=True)
    batch = replace(
        batch, rewarded_C=torch.ones_like(batch.rewarded_C), teacher_mask_CT=torch.ones_like(batch.teacher_mask_CT)
    )
    objective = Vold(beta=beta, normalise="token" if token else "sequence")
    wrong = (~batch.correct_C).double().unsqueeze(-1)
    gap = batch.logprobs_CT.detach() - batch.teacher_logprobs_CT
    advantages = batch.advantages_C.unsqueeze(-1) - beta * wrong * gap
    lengths = batch.mask_CT.sum(-1, keepdim=True)
    weights = 1 / batch.mask_CT.sum() if token else 1 / (lengths * len(lengths))
    assert torch.allclose(gradient(objective, batch), -advantages * weights * batch.mask_CT, atol=1e-12)


@pytest.mark.parametrize("divergence", ["k2", "reverse-kl"])
def test_the_teachers_term_anneals_to_grpo(divergence):
    objective = Vold(beta=0.3, anneal=0.1, divergence=divergence)
    for step, beta in ((0, 0.3), (1, 0.2), (2, 0.1)):
        batch = replace(rollouts(step), step=step)
        assert objective.needs_at(step) == objective.needs
        assert objective(batch).metrics["objective/beta"] == pytest.approx(beta)
        assert torch.allclose(
            gradient(objective, batch), gradient(Vold(beta=beta, divergence=divergence), batch), atol=1e-15
        )
    for step in (3, 100):
        batch = replace(rollouts(step), step=step, teacher_logprobs_CT=None, teacher_mask_CT=None, support=None)
        assert objective.needs_at(step) == Needs(reward=True)
        assert torch.equal(gradient(objective, batch), gradient(Grpo(eps_high=0.3), batch))
    kept = Vold(beta=0.3, anneal=0.1, beta_min=0.05)
    assert kept.beta_at(100) == 0.05
    assert kept.needs_at(100).teacher


@pytest.mark.parametrize("objective", [Opd(), Vold(beta=3.0), Vold(beta=3.0, masked=False)], ids=str)
def test_a_teacher_equal_to_the_student_adds_nothing(objective):
    batch = rollouts(1, on_policy=True)
    batch = replace(batch, teacher_logprobs_CT=batch.logprobs_CT.detach())
    found = gradient(objective, batch)
    expected = torch.zeros_like(found)
    if isinstance(objective, Vold):
        assert objective(batch).metrics["loss/teacher"] == 0
        expected = gradient(Grpo(eps_low=objective.eps_low, eps_high=objective.eps_high), batch)
    assert torch.allclose(found, expected, atol=1e-15)


def test_closed_form_by_hand():
    """Two completions, one correct: A = +-1, ratio 1; the wrong one is 0.5 below the teacher on its only token."""
    logprobs = torch.tensor([[-1.0, -1.0], [-2.0, 0.0]], requires_grad=True)
    batch = Rollouts(
        logprobs_CT=logprobs,
        old_logprobs_CT=logprobs.detach(),
        mask_CT=torch.tensor([[True, True], [True, False]]),
        advantages_C=torch.tensor([1.0, -1.0]),
        rewarded_C=torch.tensor([True, True]),
        correct_C=torch.tensor([True, False]),
        teacher_logprobs_CT=torch.tensor([[-5.0, -5.0], [-1.5, float("nan")]]),
        teacher_mask_CT=torch.tensor([[True, True], [True, False]]),
    )
    outcome = Vold(beta=0.1)(batch)
    assert outcome.metrics["loss/policy"] == pytest.approx(0.0)
    assert outcome.metrics["loss/teacher"] == pytest.approx(0.5 * 0.5**2 / 2)
    outcome.loss.backward()
    # correct: -A / (2 tokens * 2 sequences); wrong: (-A + beta (log pi - log pi_T)) / 2
    assert logprobs.grad.tolist() == [[-0.25, -0.25], [pytest.approx(0.5 - 0.1 * 0.5 / 2), 0.0]]


def test_clip_higher_allows_larger_increases_than_decreases():
    base = torch.tensor([[0.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    moved = (base + torch.tensor([[1.25], [1.35], [0.85], [0.75]]).log()).requires_grad_()
    all_true = torch.ones(4, dtype=torch.bool)
    batch = Rollouts(
        moved, base, all_true.unsqueeze(-1), torch.tensor([1.0, 1.0, -1.0, -1.0]).double(), all_true, all_true
    )
    found = gradient(Grpo(eps_low=0.2, eps_high=0.3), batch).flatten()
    assert found[0] != 0  # 1.25 < 1.3
    assert found[1] == 0  # above
    assert found[2] != 0  # 0.85 > 0.8
    assert found[3] == 0  # below
    assert Grpo(eps_low=0.2, eps_high=0.3)(batch).metrics == pytest.approx(
        {"loss/policy": (-1.25 - 1.3 + 0.85 + 0.8) / 4, "clip/low": 0.25, "clip/high": 0.25, "ratio/mean": 1.05}
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_masked_entries_are_never_read(objective):
    batch = rollouts(2)
    poisoned = replace(
        batch,
        old_logprobs_CT=batch.old_logprobs_CT.masked_fill(~batch.mask_CT, math.inf),
        teacher_logprobs_CT=batch.teacher_logprobs_CT.masked_fill(~(batch.mask_CT & batch.teacher_mask_CT), math.nan),
        rollout_logprobs_CT=batch.rollout_logprobs_CT.masked_fill(~batch.mask_CT, math.nan),
        support=replace(
            batch.support, teacher_CTK=batch.support.teacher_CTK.masked_fill(~batch.support.mask_CTK, math.nan)
        ),
    )
    assert objective(poisoned).loss.item() == objective(batch).loss.item()
    both = (batch.logprobs_CT, batch.support.student_CTK)
    found, expected = (
        torch.autograd.grad(objective(inputs).loss, both, allow_unused=True) for inputs in (poisoned, batch)
    )
    for left, right in zip(found, expected, strict=True):
        assert left is right is None or torch.equal(left, right)


def test_a_missing_reward_gives_no_gradient_and_is_no_wrong_answer():
    batch = rollouts(3)
    missing = ~batch.rewarded_C
    assert missing.any()
    assert (gradient(Vold(), batch)[missing] == 0).all()
    assert (gradient(Grpo(), batch)[missing] == 0).all()
    assert (gradient(Vold(masked=False), batch)[missing] != 0).any()


@pytest.mark.parametrize("divergence", ["k2", "reverse-kl"])
def test_the_reward_can_weigh_the_teachers_term(divergence):
    """(1 - r) per completion, for rewards between right and wrong; with rewards of 0 and 1 it is the verdict's mask."""
    batch = rollouts(3)
    graded = torch.tensor([0.25, 1.0, 0.5, 0.0, 1.5, torch.nan], dtype=torch.float64)
    term = Vold(divergence=divergence, mask="reward", beta=1.0)
    teacher = lambda objective, rewards: objective(replace(batch, rewards_C=rewards)).metrics["loss/teacher"]  # noqa: E731
    ones = torch.eye(6, dtype=torch.float64)
    each = [teacher(term, torch.where(ones[c] == 1, 0.0, 1.0)) for c in range(6)]  # the term of one completion alone
    weights = [0.75, 0.0, 0.5, 1.0, 0.0, 0.0]
    assert each[-1] == 0, "a completion without a reward is not known to be wrong"
    assert teacher(term, graded) == pytest.approx(sum(w * e for w, e in zip(weights, each, strict=True)))
    verdicts = torch.where(batch.rewarded_C, batch.correct_C.double(), torch.nan)
    assert teacher(term, verdicts) == pytest.approx(teacher(Vold(divergence=divergence, beta=1.0), verdicts))
    with pytest.raises(ValueError, match="mask 'reward' needs the verifier's rewards"):
        term(batch)


@pytest.mark.parametrize("normalise", ["sequence", "token", "constant"])
def test_the_entropy_bonus_is_subtracted_with_the_weight_of_the_other_tokens(normalise):
    batch = rollouts(2)
    entropy = torch.rand(batch.logprobs_CT.shape, dtype=torch.float64, requires_grad=True)
    plain = Grpo(normalise=normalise)
    rewarded = replace(plain, entropy_bonus=0.3)
    outcome = with_entropy_bonus(rewarded, rewarded(batch), batch, entropy)
    mean = plain.mean(entropy, batch.mask_CT, batch)
    assert outcome.loss.item() == pytest.approx(plain(batch).loss.item() - 0.3 * mean.item())
    assert outcome.metrics["loss/entropy"] == mean.item()
    assert not torch.autograd.grad(outcome.loss, entropy)[0][~batch.mask_CT].any()
    untouched = plain(batch)
    assert with_entropy_bonus(plain, untouched, batch, entropy) is untouched


@pytest.mark.parametrize(
    "objective", [*OBJECTIVES, Vold(mask="reward"), Vold(mask="reward", normalise="token")], ids=named
)
@pytest.mark.parametrize("seed", range(3))
def test_the_scores_of_completions_outside_the_teachers_mask_are_never_read(objective, seed):
    """To the last digit, so that a teacher need not be asked for them."""
    batch = rollouts(seed, C=12, dtype=torch.float32)
    batch = replace(batch, rewards_C=torch.where(batch.rewarded_C, batch.correct_C * 0.5 + 0.5, torch.nan))
    used_C = objective.teacher_mask(batch.verdicts)
    assert used_C.all() or objective.teacher_mask_by != "nothing"
    unsent = replace(
        batch,
        teacher_logprobs_CT=torch.where(used_C.unsqueeze(-1), batch.teacher_logprobs_CT, torch.nan),
        teacher_mask_CT=batch.teacher_mask_CT & used_C.unsqueeze(-1),
        support=replace(batch.support, mask_CTK=batch.support.mask_CTK & used_C.view(-1, 1, 1)),
    )
    both = (batch.logprobs_CT, batch.support.student_CTK)
    outcomes = [objective(each).loss for each in (batch, unsent)]
    assert outcomes[0].item() == outcomes[1].item()
    gradients = [torch.autograd.grad(loss, both, allow_unused=True) for loss in outcomes]
    for left, right in zip(*gradients, strict=True):
        assert (left is None and right is None) or torch.equal(left, right)


def test_masked_objectives_leave_out_what_their_verdicts_mask():
    true, false = torch.tensor([True] * 4), torch.tensor([False, False, True, True])
    batch = replace(
        rollouts(0, C=4), rewarded_C=torch.tensor([True, True, True, False]), correct_C=~false & true,
        rewards_C=torch.tensor([1.0, 0.5, 0.0, torch.nan]), unsolved_C=false,
    )  # fmt: skip
    expected = {
        Vold(): [False, False, True, False],
        Vold(mask="reward"): [False, True, True, False],
        Vold(masked=False): [True] * 4,
        Kdrl(mask="response"): [False, False, True, False],
        Kdrl(mask="group"): [False, False, True, True],
        Hdpo(): [False, False, True, True],
        Srpo(): [False, False, True, False],
        Opd(): [True] * 4,
    }
    for objective, mask in expected.items():
        assert objective.teacher_mask(batch.verdicts).tolist() == mask, objective


def later_step(V=5):
    """A position after an optimiser step: (logits of the student, with gradient; one completion of a token for each of
    the V ids, sampled by other weights; their probabilities under those; the teacher's log-probabilities).
    """
    torch.manual_seed(3)
    logits = torch.randn(V, dtype=torch.float64, requires_grad=True)
    old, teacher = (torch.randn(V, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    true = torch.ones(V, 1, dtype=torch.bool)
    batch = Rollouts(
        logprobs_CT=logits.log_softmax(-1).unsqueeze(-1), old_logprobs_CT=old.unsqueeze(-1), mask_CT=true,
        advantages_C=torch.zeros(V).double(), rewarded_C=true[:, 0], correct_C=~true[:, 0],
        teacher_logprobs_CT=teacher.unsqueeze(-1), teacher_mask_CT=true,
        reference_logprobs_CT=teacher.unsqueeze(-1), reference_mask_CT=true,
    )  # fmt: skip
    return logits, batch, old.exp(), teacher


def kl_gradients(logits, teacher):
    """The gradients of KL(student || teacher) and of KL(teacher || student) by central differences."""
    values = {"reverse": [], "forward": []}
    for index in range(len(logits)):
        moved = [logits.detach().index_add(0, torch.tensor([index]), torch.tensor([step]).double()).log_softmax(-1)
                 for step in (1e-6, -1e-6)]  # fmt: skip
        reverse = [(each.exp() * (each - teacher)).sum() for each in moved]
        forward = [(teacher.exp() * (teacher - each)).sum() for each in moved]
        values["reverse"].append((reverse[0] - reverse[1]) / 2e-6)
        values["forward"].append((forward[0] - forward[1]) / 2e-6)
    return {name: torch.stack(gradient) for name, gradient in values.items()}


@pytest.mark.parametrize(
    ("objective", "kl"),
    [
        (Vold(beta=1.0), "reverse"),
        (Vold(beta=1.0, divergence="k3"), "forward"),
        (OpdTopK(divergence="k2"), "reverse"),
        (Grpo(kl_beta=1.0, kl_estimator="k2"), "reverse"),
        (Grpo(kl_beta=1.0, kl_estimator="k3"), "forward"),
        (Grpo(kl_beta=1.0, kl_estimator="unbiased"), "reverse"),
    ],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_in_a_later_optimiser_step_the_expected_gradient_is_that_of_the_kl(objective, kl):
    """Of tokens that were sampled by the weights before it. Without the ratio it is another vector."""
    logits, batch, probabilities, teacher = later_step()
    expected = kl_gradients(logits, teacher)[kl]

    def mean_gradient(chosen):
        # The mean over completions is that over V; each token has the probability with which it was sampled.
        weighted = replace(batch, logprobs_CT=logits.log_softmax(-1).unsqueeze(-1))
        total = 0
        for token in range(len(logits)):
            one = {name: value[token : token + 1] for name, value in vars(weighted).items() if torch.is_tensor(value)}
            each = replace(weighted, **one)
            total = total + probabilities[token] * with_reference_kl(chosen, chosen(each), each).loss
        return torch.autograd.grad(total, logits)[0]

    assert torch.allclose(mean_gradient(objective), expected, atol=1e-8)
    if objective.kl_estimator != "unbiased":
        assert not torch.allclose(mean_gradient(replace(objective, kl_ratio=False)), expected, atol=1e-2)


@pytest.mark.parametrize(
    "objective", [Vold(), Vold(divergence="k3", masked=False), OpdTopK(divergence="k3")], ids=named
)
def test_in_the_first_optimiser_step_the_ratio_changes_no_digit(objective):
    batch = rollouts(4, on_policy=True, dtype=torch.float32)
    plain = replace(objective, kl_ratio=False)
    assert objective(batch).loss.item() == plain(batch).loss.item()
    assert torch.equal(gradient(objective, batch), gradient(plain, batch))


def test_the_value_of_the_unbiased_estimate_is_the_kl():
    logits, batch, probabilities, teacher = later_step()
    student = logits.log_softmax(-1)
    exact = (student.exp() * (student - teacher)).sum()
    found, known = reference_kl(Grpo(kl_estimator="unbiased"), batch)
    assert known.all()
    assert (probabilities * found[:, 0]).sum().item() == pytest.approx(exact.item())


def test_a_reference_that_is_missing_adds_nothing_and_stays_in_the_divisor():
    batch = rollouts(1)
    known_CT = torch.rand(batch.mask_CT.shape) > 0.4
    reference_CT = torch.where(known_CT, batch.logprobs_CT.detach() - 0.5, torch.nan)
    batch = replace(batch, reference_logprobs_CT=reference_CT, reference_mask_CT=known_CT)
    objective = Grpo(kl_beta=0.7, kl_estimator="k2")
    outcome = with_reference_kl(objective, objective(batch), batch)
    weights_CT = (batch.logprobs_CT - batch.old_logprobs_CT).detach().exp()
    lengths_C = batch.mask_CT.sum(-1)
    kl = (torch.where(batch.mask_CT & known_CT, 0.125 * weights_CT, 0.0).sum(-1) / lengths_C).mean()
    assert outcome.metrics["loss/reference"] == pytest.approx(kl.item())
    assert outcome.loss.item() == pytest.approx(objective(batch).loss.item() + 0.7 * kl.item())
    capped = replace(objective, rollout_cap=1.1)
    cut_CT = (batch.old_logprobs_CT - batch.rollout_logprobs_CT).exp().clamp(max=1.1)
    kl = (torch.where(batch.mask_CT & known_CT, 0.125 * weights_CT * cut_CT, 0.0).sum(-1) / lengths_C).mean()
    assert with_reference_kl(capped, capped(batch), batch).metrics["loss/reference"] == pytest.approx(kl.item())
    plain = objective(batch)
    assert with_reference_kl(Grpo(), plain, batch) is plain
    with pytest.raises(ValueError, match="kl_beta needs the reference"):
        with_reference_kl(objective, plain, replace(batch, reference_logprobs_CT=None))


@pytest.mark.parametrize("objective", RECORDED, ids=named)
def test_without_the_later_options_losses_and_gradients_are_the_recorded_ones(objective):
    """Of the version before kl_beta, kl_ratio and the teacher's mask: off the policy, and on it."""
    recorded = json.loads((CASES / "losses-of-objectives.json").read_text())[named(objective)]
    found = []
    for on_policy in (False, True):
        batch = rollouts(5, C=8, on_policy=on_policy)
        chosen = objective if on_policy else replace(objective, kl_ratio=False)  # on the policy the ratio is 1
        loss = with_reference_kl(chosen, chosen(batch), batch).loss
        gradients = torch.autograd.grad(loss, (batch.logprobs_CT, batch.support.student_CTK), allow_unused=True)
        found += [loss.item(), sum(part.abs().sum().item() for part in gradients if part is not None)]
    assert found == pytest.approx(recorded, rel=1e-12, abs=1e-15)
