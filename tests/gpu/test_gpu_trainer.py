"""The trainer on the device, against float32 on the CPU: scores, gradients, objectives, updates, generation, resume."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from noise_prompts import IMAGE_PROMPTS, TEXT_PROMPTS
from tiny_students import tiny_student
from vold_trainer.config import StudentConfig, TrainConfig, load
from vold_trainer.objectives import REGISTRY, Rollouts, Support
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.rollout.base import Rollout
from vold_trainer.rollout.hf import generate
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scores import RolloutScore
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.training.train import run_train
from vold_trainer.training.update import PolicyUpdater

COMPLETIONS = [[20, 21, 22, 23, 24, 25], [30], [31, 20, 40], [33, 34], [41, 42, 20, 21, 22, 23, 24], [50, 51]]
FAMILIES = ["qwen2.5-vl", "qwen3-vl", "qwen3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("students")
    return lambda family: root / family if (root / family).exists() else tiny_student(family, root / family)


def make_student(folder, device, **settings):
    student = load_student(StudentConfig(path=str(folder), **{"freeze": []} | settings))
    student.model.to(device)
    return student


def scores_and_gradients(student, device, *, apart=False):
    """(log-probabilities, entropies, gradients by name) of ragged completions, with pictures where it reads them."""
    some = TEXT_PROMPTS[:2] if student.processor is student.tokenizer else [IMAGE_PROMPTS[1], TEXT_PROMPTS[1]]
    prompts = [some[index] for index in (1, 0, 1, 1, 0, 0)]
    if apart:
        prompts = [replace(prompt) for prompt in prompts]
    batch = make_batch(student, prompts, COMPLETIONS, device=device)
    student.model.zero_grad()
    found = CompletionScorer(student.model).train()(batch.inputs, batch.predicts_BS, batch.ids_N)
    weights = torch.linspace(-1, 1, len(batch.ids_N), device=device)
    (found.logprobs_N * weights).sum().backward()
    gradients = {name: v.grad.float().cpu() for name, v in student.model.named_parameters() if v.grad is not None}
    return found.logprobs_N.detach().cpu(), found.entropy_N.detach().cpu(), gradients


SETTINGS = {
    "shared prompts": {},
    "recomputed": {"checkpoint_activations": True},
    "LoRA": {"lora": {"r": 4}},
}


@pytest.mark.slow_on_cpu
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_in_float32_are_those_of_the_cpu(device, folder, family, settings):
    if "lora" in settings:
        pytest.importorskip("peft")
    torch.manual_seed(0)
    reference = make_student(folder(family), "cpu", **{k: v for k, v in settings.items() if k == "lora"})
    student = make_student(folder(family), device, **settings)
    if "lora" in settings:  # B is 0 at first, and its A random
        state = {name: v for name, v in reference.model.state_dict().items() if ".lora_" in name}
        state = {name: torch.randn_like(v) * 0.1 for name, v in state.items()}
        for one in (reference, student):
            one.model.load_state_dict(state, strict=False)
    logprobs, entropies, gradients = scores_and_gradients(student, device)
    expected = scores_and_gradients(reference, torch.device("cpu"), apart=True)
    torch.testing.assert_close(logprobs, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropies, expected[1], rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected[2].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[2][name], rtol=5e-3, atol=1e-4, msg=name)


def assert_gradients_near(found, expected):
    """Within 10 % each and 2 % of the whole gradient: those of queries and keys are small differences."""
    whole = sum(float(gradient.square().sum()) for gradient in expected.values()) ** 0.5
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm() + 0.02 * whole, name


@pytest.mark.parametrize("family", [pytest.param("qwen2.5-vl", marks=pytest.mark.slow_on_cpu), "qwen3"])
def test_bfloat16_products_are_near_float32(device, folder, family):
    exact = scores_and_gradients(make_student(folder(family), device), device)
    mixed = scores_and_gradients(make_student(folder(family), device, compute="bfloat16"), device)
    assert (mixed[0] - exact[0]).abs().max() < 0.1
    assert_gradients_near(mixed[2], exact[2])


@pytest.mark.slow_on_cpu
def test_bfloat16_products_are_near_float32_at_real_width(device, tmp_path):
    """Two layers of Qwen2.5-VL-3B with its vocabulary on a GPU; the tiny shape on a CPU."""
    from gpu_parts import shapes
    from vold_trainer.student.models import make_student as prepare

    size = "real" if device.type == "cuda" else "tiny"
    processor, tokenizer = shapes.student_folder(size, tmp_path)
    config = shapes.student_config(size, tokenizer)
    config.text_config.num_hidden_layers = 2
    config.text_config.layer_types = (config.text_config.layer_types or [])[:2] or None
    found = []
    for compute in (None, "bfloat16"):
        model = shapes.random_model(shapes.AutoModelForImageTextToText, config, device, torch.float32)
        student = prepare(model, processor, tokenizer, StudentConfig(path=str(tmp_path), compute=compute))
        found.append(scores_and_gradients(student, device))
    assert (found[1][0] - found[0][0]).abs().mean() < 0.03
    assert_gradients_near(found[1][2], found[0][2])


def random_rollouts():
    """Rollouts of random values, with all that any objective needs, and the leaf of their log-probabilities."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    leaf = (-normal(4, 5).abs()).requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4]).unsqueeze(-1)
    support = normal(4, 5, 3).log_softmax(-1).requires_grad_()
    return leaf, support, Rollouts(
        logprobs_CT=leaf,
        old_logprobs_CT=leaf.detach() + 0.1 * normal(4, 5),
        mask_CT=mask,
        advantages_C=normal(4),
        rewarded_C=torch.tensor([True, True, False, True]),
        correct_C=torch.tensor([True, False, False, False]),
        rewards_C=torch.tensor([1.0, 0.0, float("nan"), 0.0]),
        unsolved_C=torch.tensor([False, False, True, True]),
        teacher_logprobs_CT=-normal(4, 5).abs(),
        teacher_mask_CT=mask & (normal(4, 5) > -1),
        teacher_entropy_CT=normal(4, 5).abs(),
        rollout_logprobs_CT=-normal(4, 5).abs(),
        support=Support(support, normal(4, 5, 3).log_softmax(-1), mask.unsqueeze(-1).expand(4, 5, 3)),
        step=3,
        max_tokens=5,
    )  # fmt: skip


def to(value, device):
    """A tensor, or the tensors of a dataclass, on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Support):
        return Support(*(to(getattr(value, field.name), device) for field in fields(value)))
    return value


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_losses_and_their_gradients_are_those_of_the_cpu(device, name):
    objective = REGISTRY[name]()
    found = []
    for place in (torch.device("cpu"), device):
        leaf, support, rollouts = random_rollouts()
        values = {field.name: to(getattr(rollouts, field.name), place) for field in fields(rollouts)}
        outcome = objective(Rollouts(**values))
        gradients = torch.autograd.grad(outcome.loss, [leaf, support], allow_unused=True)
        found.append((outcome.loss.detach().cpu(), [None if g is None else g.cpu() for g in gradients]))
    assert found[0][0].isfinite()
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in found[0][1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def scored_batch():
    rng = np.random.default_rng(0)
    prompts = [TEXT_PROMPTS[1], IMAGE_PROMPTS[1]]
    rollouts = [
        Rollout(row, prompts[row // 3], (), tuple(ids), "", truncated=False, logprobs=np.full(len(ids), -4, np.float32))
        for row, ids in enumerate(COMPLETIONS)
    ]
    scores = [
        RolloutScore(-rng.random(len(ids)).astype(np.float32), reward=float(row % 2), correct=bool(row % 2))
        for row, ids in enumerate(COMPLETIONS)
    ]
    return ScoredBatch(rollouts, scores, 3)


def updated(folder, monkeypatch, device, *, micro, **settings):
    """The trainable weights and the metrics after a policy update on the device."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with monkeypatch.context() as patch:
        if str(device) == "cpu":
            patch.setattr(torch.accelerator, "is_available", lambda *_, **__: False)
        config = TrainConfig.model_validate(
            {
                "student": {"path": str(folder), "freeze": [], **settings},
                "batch": {"micro": micro},
                "optim": {"lr": 1e-2, "warmup_steps": 0},
                "out": folder,
            }
        )
        student = load_student(config.student)
        student.model.train()
        updater = PolicyUpdater(config, student, Ranks(make_accelerator()))
        assert student.model.device.type == torch.device(device).type
        metrics, _ = updater.update(0, scored_batch(), config.objective.needs)
    AcceleratorState._reset_state(reset_partial_state=True)
    return {n: v.detach().float().cpu() for n, v in student.model.named_parameters() if v.requires_grad}, metrics


@pytest.mark.slow_on_cpu
def test_an_update_in_micro_batches_is_that_of_the_cpu_in_one(device, folder, monkeypatch):
    weights, metrics = updated(folder("qwen2.5-vl"), monkeypatch, device, micro=2)
    expected, wanted = updated(folder("qwen2.5-vl"), monkeypatch, "cpu", micro=6)
    assert metrics["loss"] == pytest.approx(wanted["loss"], rel=1e-4, abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)
    far = sum(int(((weights[name] - value).abs() > 2e-3).sum()) for name, value in expected.items())
    total = sum(value.numel() for value in expected.values())
    assert far < 0.01 * total  # where a gradient is about 0, AdamW's first step takes its sign


@pytest.mark.slow_on_cpu
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_draws_what_the_cpu_draws(device, folder, family):
    prompts = TEXT_PROMPTS if family == "qwen3" else [TEXT_PROMPTS[1], IMAGE_PROMPTS[1]]
    options = {"group": 3, "max_tokens": 6, "temperature": 0.7, "seed": 5, "logprobs": True}
    student = make_student(folder(family), device)
    found = generate(student, prompts, **options)
    assert [one.ids for one in found] == [one.ids for one in generate(student, prompts, batch=4, **options)]
    expected = generate(make_student(folder(family), "cpu"), prompts, **options)
    assert sum(one.ids == other.ids for one, other in zip(found, expected, strict=True)) >= len(expected) - 1
    batch = make_batch(student, [one.example for one in found], [one.ids for one in found], device=device)
    with torch.no_grad():
        scored = CompletionScorer(student.model).eval()(batch.inputs, batch.predicts_BS, batch.ids_N, 0.7)
    logprobs = np.concatenate([one.logprobs for one in found])
    np.testing.assert_allclose(logprobs, scored.logprobs_N.cpu().numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow_on_cpu
def test_a_resumed_run_goes_on_as_one_that_was_not_stopped(device, verifier, tmp_path):
    if device.type == "cpu" and torch.cuda.is_available():
        pytest.skip("a run takes the GPU that is there")

    def train(out, steps, **options):
        settings = ["rollout.prompts=2", "rollout.group=2", "rollout.max_tokens=8", f"steps={steps}", "data.limit=8"]
        settings += [f"out={tmp_path / out}", f"verifier.url={verifier.grpc}", "student.path=pocket:student"]
        AcceleratorState._reset_state(reset_partial_state=True)
        run_train(load(TrainConfig, "pocket:grpo", [*settings, "checkpoints.every=2"]), export=False, **options)
        return [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]

    whole = train("whole", 4)
    train("parts", 2)
    parts = train("parts", 4, resume=True)
    for one, other in zip(parts, whole, strict=True):
        for name in ("loss", "grad_norm", "length/mean", "reward/mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
