"""Objectives against closed forms, finite differences and TRL's numbers on the same tensors."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_trainer.advantages import group_advantages
from vold_trainer.objectives import Grpo, Opd, Rollouts, Vold

OBJECTIVES = [
    Grpo(),
    Grpo(normalise="token"),
    Opd(),
    Opd(normalise="token"),
    Vold(),
    Vold(masked=False),
    Vold(beta=0.7, normalise="token"),
]


def rollouts(seed=0, C=6, T=5, *, on_policy=False, dtype=torch.float64):
    """Random rollouts with ragged lengths, a missing reward, and masked teacher positions."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=dtype)  # noqa: E731
    logprobs = (-3 * rand(C, T)).requires_grad_()
    lengths = torch.randint(1, T + 1, (C,), generator=generator)
    correct = torch.tensor([True, False] * C)[:C]
    rewarded = torch.ones(C, dtype=torch.bool)
    rewarded[-1] = False
    advantages = torch.where(rewarded, rand(C) * 2 - 1, 0.0)
    return Rollouts(
        logprobs_CT=logprobs,
        old_logprobs_CT=logprobs.detach() if on_policy else logprobs.detach() + 0.6 * (rand(C, T) - 0.5),
        mask_CT=torch.arange(T) < lengths.unsqueeze(-1),
        advantages_C=advantages,
        rewarded_C=rewarded,
        correct_C=correct & rewarded,
        teacher_logprobs_CT=-3 * rand(C, T),
        teacher_mask_CT=rand(C, T) > 0.2,
    )


def gradient(objective, batch):
    return torch.autograd.grad(objective(batch).loss, batch.logprobs_CT)[0]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_finite_differences(objective, seed):
    batch = rollouts(seed)
    if isinstance(objective, Opd):  # the gap is an advantage: hold it still while the ratio moves
        held = batch.teacher_logprobs_CT - batch.logprobs_CT.detach()
        found = gradient(objective, batch)

        def loss(values):
            return objective(replace(batch, logprobs_CT=values, teacher_logprobs_CT=held + values)).loss.item()
    else:
        found = gradient(objective, batch)

        def loss(values):
            return objective(replace(batch, logprobs_CT=values)).loss.item()

    step = 1e-6
    for c in range(batch.logprobs_CT.shape[0]):
        for t in range(batch.logprobs_CT.shape[1]):
            nudge = torch.zeros_like(batch.logprobs_CT)
            nudge[c, t] = step
            base = batch.logprobs_CT.detach()
            difference = (loss(base + nudge) - loss(base - nudge)) / (2 * step)
            assert found[c, t].item() == pytest.approx(difference, abs=1e-7)


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
    """Two completions, one right: A = +-1, ratio 1; the wrong one is 0.5 below the teacher on its only token."""
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
    # right: -A / (2 tokens * 2 sequences); wrong: (-A + beta (log pi - log pi_T)) / 2
    assert logprobs.grad.tolist() == [[-0.25, -0.25], [pytest.approx(0.5 - 0.1 * 0.5 / 2), 0.0]]


def test_clip_higher_lets_good_tokens_rise_further_than_bad_ones_fall():
    base = torch.tensor([[0.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    moved = (base + torch.tensor([[1.25], [1.35], [0.85], [0.75]]).log()).requires_grad_()
    yes = torch.ones(4, dtype=torch.bool)
    batch = Rollouts(moved, base, yes.unsqueeze(-1), torch.tensor([1.0, 1.0, -1.0, -1.0]).double(), yes, yes)
    found = gradient(Grpo(eps_low=0.2, eps_high=0.3), batch).flatten()
    assert found[0] != 0  # 1.25 < 1.3
    assert found[1] == 0  # above
    assert found[2] != 0  # 0.85 > 0.8
    assert found[3] == 0  # below
    assert Grpo(eps_low=0.2, eps_high=0.3)(batch).metrics == pytest.approx(
        {"loss/policy": (-1.25 - 1.3 + 0.85 + 0.8) / 4, "clip/low": 0.25, "clip/high": 0.25, "ratio/mean": 1.05}
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_what_is_masked_is_never_read(objective):
    batch = rollouts(2)
    poisoned = replace(
        batch,
        old_logprobs_CT=batch.old_logprobs_CT.masked_fill(~batch.mask_CT, math.inf),
        teacher_logprobs_CT=batch.teacher_logprobs_CT.masked_fill(~(batch.mask_CT & batch.teacher_mask_CT), math.nan),
    )
    assert objective(poisoned).loss.item() == objective(batch).loss.item()
    assert torch.equal(gradient(objective, poisoned), gradient(objective, batch))


def test_a_missing_reward_teaches_nothing_and_is_no_wrong_answer():
    batch = rollouts(3)
    missing = ~batch.rewarded_C
    assert missing.any()
    assert (gradient(Vold(), batch)[missing] == 0).all()
    assert (gradient(Grpo(), batch)[missing] == 0).all()
    assert (gradient(Vold(masked=False), batch)[missing] != 0).any()


def test_advantages_are_centred_and_scaled_by_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, math.nan, math.nan]])
    found = group_advantages(rewards, delta=0.0)
    assert found[0].tolist() == pytest.approx([3**0.5 / 2, -(3**0.5) / 2, -(3**0.5) / 2, 3**0.5 / 2])
    assert group_advantages(rewards)[1].tolist() == [0.0] * 4
    assert found[2].tolist() == pytest.approx([2**-0.5, -(2**-0.5), 0.0, 0.0])
    assert group_advantages(rewards, divide_by_std=False)[0].tolist() == [0.5, -0.5, -0.5, 0.5]


def test_a_lone_reward_gives_no_advantage():
    assert group_advantages(torch.tensor([[1.0, math.nan]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("loss_type", "normalise"), [("grpo", "sequence"), ("bnpo", "token")])
def test_one_step_equals_trl(loss_type, normalise, tmp_path):
    """GRPO's loss and its gradient on a model's parameters, against TRL's on the same batch."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from vold_trainer.models import CompletionScorer

    torch.manual_seed(0)
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *"abcdefghij"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    config = Qwen3Config(
        vocab_size=12, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, loss_type=loss_type, beta=0.0, epsilon=0.2,
        epsilon_high=0.3, num_generations=2, per_device_train_batch_size=4, temperature=1.0, max_completion_length=5,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model, reward_funcs=lambda completions, **kwargs: [0.0] * len(completions), args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a b"}] * 4), processing_class=tokenizer,
    )  # fmt: skip
    C, T = 4, 5
    prompt = torch.randint(2, 12, (C, 3))
    completion = torch.randint(2, 12, (C, T))
    lengths = torch.tensor([5, 2, 4, 1])
    mask = torch.arange(T) < lengths.unsqueeze(-1)
    advantages = torch.tensor([0.7, -0.7, 1.3, -0.2])
    old = torch.randn(C, T) * 0.2 - 2.4
    inputs = {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion,
        "completion_mask": mask.long(), "advantages": advantages, "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which train() would set
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    their_gradient = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()

    ids = torch.cat([prompt, completion], -1)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    predicts[:, 2 : 2 + T] = mask
    attention = torch.cat([torch.ones_like(prompt), mask.long()], -1)
    scores = CompletionScorer(model)({"input_ids": ids, "attention_mask": attention}, predicts, completion[mask])
    rectangle = torch.zeros(C, T).masked_scatter(mask, scores.logprobs_N)
    yes = torch.ones(C, dtype=torch.bool)
    ours = Grpo(eps_low=0.2, eps_high=0.3, normalise=normalise)(
        Rollouts(rectangle, old, mask, advantages, yes, yes)
    ).loss
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for name, value in model.named_parameters():
        assert torch.allclose(value.grad, their_gradient[name], atol=1e-6), name
