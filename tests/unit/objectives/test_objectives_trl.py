"""The policy losses against TRL on the same batch: the loss and its gradient on a model's parameters."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from vold_trainer.objectives import Cispo, Dapo, DrGrpo, Grpo, Gspo, Rollouts, Vold
from vold_trainer.objectives.base import with_entropy_bonus
from vold_trainer.objectives.reference import with_reference_kl
from vold_trainer.student.models import CompletionScorer

C, T = 4, 5
LENGTHS = torch.tensor([5, 2, 4, 1])
MASK = torch.arange(T) < LENGTHS.unsqueeze(-1)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """TRL's GRPOTrainer with a tiny model; each test sets the options of its loss."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    torch.manual_seed(0)
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *"abcdefghij"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    config = Qwen3Config(
        vocab_size=12, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), report_to=[], use_cpu=True, bf16=False, beta=0.0,
        num_generations=2, per_device_train_batch_size=C, temperature=1.0, max_completion_length=T,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        Qwen3ForCausalLM(config), reward_funcs=lambda completions, **kwargs: [0.0] * len(completions), args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a b"}] * C), processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # normally set by train()
    return trainer


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({"loss_type": "grpo", "epsilon_high": 0.3}, Grpo(eps_high=0.3)),
        ({"loss_type": "bnpo", "epsilon_high": 0.3}, Grpo(eps_high=0.3, normalise="token")),
        ({"loss_type": "dr_grpo"}, DrGrpo()),
        ({"loss_type": "dapo", "epsilon_high": 0.28}, Dapo()),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.07},
            Gspo(eps_low=0.05, eps_high=0.07),
        ),
        ({"loss_type": "cispo", "epsilon_high": 1.1}, Cispo(eps_max=1.1)),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, Cispo()),
        ({"loss_type": "grpo", "use_vllm": True}, Grpo(rollout_cap=1.1)),
        ({"loss_type": "dapo", "epsilon_high": 0.28, "use_vllm": True}, Dapo(rollout_cap=1.1)),
        (
            {"loss_type": "grpo", "beta": 0.4, "use_bias_correction_kl": False},
            Vold(divergence="k3", masked=False, beta=0.4, eps_high=0.2, kl_ratio=False),
        ),
        ({"loss_type": "grpo", "beta": 0.4, "use_bias_correction_kl": False}, Grpo(kl_beta=0.4, kl_ratio=False)),
        ({"loss_type": "grpo", "beta": 0.4}, Grpo(kl_beta=0.4, kl_estimator="unbiased")),
        ({"loss_type": "dr_grpo", "beta": 0.4}, DrGrpo(kl_beta=0.4, kl_estimator="unbiased")),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.4}, Cispo(kl_beta=0.4, kl_estimator="unbiased")),
        ({"loss_type": "bnpo", "entropy_coef": 0.3}, Grpo(normalise="token", entropy_bonus=0.3)),
        (
            {"loss_type": "bnpo", "beta": 0.4, "entropy_coef": 0.3},
            Grpo(normalise="token", kl_beta=0.4, kl_estimator="unbiased", entropy_bonus=0.3),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value.name,
)
def test_one_step_equals_trl(trainer, monkeypatch, settings, objective):
    """TRL's `beta` weights k3 against its reference model, which can be a teacher here. By default it multiplies k3 by
    the ratio, as DeepSeek-V3.2 does.
    """
    defaults = {"epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, "importance_sampling_level": "token"}
    defaults |= {"entropy_coef": 0.0, "use_bias_correction_kl": True}
    for name, value in (defaults | settings).items():
        monkeypatch.setattr(trainer.args if name == "use_bias_correction_kl" else trainer, name, value)
    monkeypatch.setattr(trainer, "_entropy_bonus_enabled", bool(settings.get("entropy_coef")))
    torch.manual_seed(1)
    model = trainer.model
    prompt, completion = torch.randint(2, 12, (C, 3)), torch.randint(2, 12, (C, T))
    advantages = torch.tensor([0.7, -0.7, 1.3, -0.2])
    old, reference = torch.randn(C, T) * 0.2 - 2.4, torch.randn(C, T) * 0.2 - 2.4
    sampling = old + 0.3 * torch.randn(C, T)
    inputs = {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion,
        "completion_mask": MASK.long(), "advantages": advantages, "old_per_token_logps": old,
        "ref_per_token_logps": reference, "num_items_in_batch": MASK.sum(),
        "importance_sampling_ratio": (old - sampling).exp().clamp(max=1.1),
    }  # fmt: skip
    model.zero_grad()
    trl_loss = trainer.compute_loss(model, inputs)
    trl_loss.backward()
    trl_gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()

    ids = torch.cat([prompt, completion], -1)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    predicts[:, 2 : 2 + T] = MASK
    attention = torch.cat([torch.ones_like(prompt), MASK.long()], -1)
    scores = CompletionScorer(model)(
        {"input_ids": ids, "attention_mask": attention}, predicts, completion[MASK], entropy_gradient=True
    )
    all_true = torch.ones(C, dtype=torch.bool)
    rollouts = Rollouts(
        torch.zeros(C, T).masked_scatter(MASK, scores.logprobs_N), old, MASK, advantages, all_true, all_true,
        teacher_logprobs_CT=reference, teacher_mask_CT=MASK, rollout_logprobs_CT=sampling, max_tokens=T,
        reference_logprobs_CT=reference, reference_mask_CT=MASK,
    )  # fmt: skip
    outcome = with_reference_kl(objective, objective(rollouts), rollouts)
    entropy_CT = torch.zeros(C, T).masked_scatter(MASK, scores.entropy_N)
    loss = with_entropy_bonus(objective, outcome, rollouts, entropy_CT).loss
    loss.backward()
    assert loss.item() == pytest.approx(trl_loss.item(), abs=1e-6)
    for name, value in model.named_parameters():
        assert torch.allclose(value.grad, trl_gradients[name], atol=1e-6), name
