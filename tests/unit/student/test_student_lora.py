"""LoRA students: only adapters are trained, saved and resumed, and an export is a plain model with the same outputs."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_students import FAMILIES, VISION_FAMILIES, tiny_student
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from vold_trainer.config import LoraConfig, OptimConfig, StudentConfig, TrainConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.rollout.hf import generate
from vold_trainer.runs.saving import Saver
from vold_trainer.runs.start import Start
from vold_trainer.student.batching import make_batch
from vold_trainer.student.lora import merge_lora
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.parts import parameter_parts

IDS = [[40, 41, 42], [50, 51]]


def examples(family):
    text = Example("t", ({"role": "user", "content": "What is 2 + 2?"},), "")
    if family not in VISION_FAMILIES:
        return [text, text]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    content = [{"type": "image"}, {"type": "text", "text": "And this?"}]
    return [text, Example("i", ({"role": "user", "content": content},), "", (image,))]


def load(folder, *, dtype="float32", **lora):
    torch.manual_seed(7)
    return load_student(StudentConfig(path=str(folder), dtype=dtype, lora=LoraConfig(r=4, alpha=8, **lora)))


def scored(student, family):
    batch = make_batch(student, examples(family), IDS)
    return CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N


def train(student, family, optimizer, scheduler, steps):
    student.model.train()
    for _ in range(steps):
        (-scored(student, family).mean()).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    student.model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_change_and_an_export_gives_the_same_numbers(family, tmp_path):
    folder = tiny_student(family, tmp_path / "base")
    base = load_student(StudentConfig(path=str(folder), freeze=[]))
    student = load(folder)
    before = {name: value.detach().clone() for name, value in student.model.named_parameters()}
    trainable = {name for name, value in student.model.named_parameters() if value.requires_grad}
    assert trainable == {name for name in before if ".lora_" in name}
    owners = parameter_parts(base.model)
    assert {owners[f"{name.partition('.lora_')[0]}.weight"] for name in trainable} == {"language"}
    with torch.no_grad():
        assert torch.equal(scored(student, family), scored(base, family))

    optimizer, scheduler = make_optimizer(student.model, OptimConfig(lr=0.02, warmup_steps=0), 10)
    train(student, family, optimizer, scheduler, 3)
    changed = {name for name, value in student.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == trainable
    with torch.no_grad():
        trained = scored(student, family)
        assert (trained - scored(base, family)).abs().max() > 1e-3
        rollouts = generate(student, examples(family)[:1], max_tokens=4, temperature=0.0)
        student.save(tmp_path / "model")
        assert torch.equal(scored(student, family), trained)

        auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
        plain = auto.from_pretrained(tmp_path / "model")
        assert set(plain.state_dict()) == set(base.model.state_dict())
        reloaded = load_student(StudentConfig(path=str(tmp_path / "model"), freeze=[]))
        assert torch.allclose(scored(reloaded, family), trained, atol=1e-5)
        reloaded_rollouts = generate(reloaded, examples(family)[:1], max_tokens=4, temperature=0.0)
        assert [rollout.ids for rollout in reloaded_rollouts] == [rollout.ids for rollout in rollouts]


def adapting(folder, out, family, steps):
    """A run's student with adapters, what saves it, and `steps` steps of it done."""
    student = load(folder)
    optim = OptimConfig(lr=0.01, warmup_steps=0)
    config = TrainConfig(out=out, student=StudentConfig(path=str(folder)), steps=10, optim=optim)
    ranks = Ranks(make_accelerator())
    prepared = PreparedModel(student, optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, prepared, ranks, {})
    train(student, family, prepared.optimizer, prepared.scheduler, steps)
    return student, prepared, saver


@pytest.mark.parametrize("family", ["qwen3-vl", "gemma3", "qwen3"])
def test_resuming_gives_the_same_numbers_as_going_on(family, tmp_path):
    folder = tiny_student(family, tmp_path / "base")
    first, prepared, saver = adapting(folder, tmp_path / "run", family, 2)
    saver.save(2, {})
    train(first, family, prepared.optimizer, prepared.scheduler, 2)

    torch.manual_seed(99)
    second, prepared, saver = adapting(folder, tmp_path / "run", family, 0)
    assert saver.restore(Start(resume=True)).step == 2
    train(second, family, prepared.optimizer, prepared.scheduler, 2)
    with torch.no_grad():
        assert torch.equal(scored(second, family), scored(first, family))


def test_the_exported_adapter_is_one_that_peft_loads(tmp_path):
    from peft import PeftModel

    folder = tiny_student("qwen2.5-vl", tmp_path / "base")
    student = load(folder, targets=["q_proj", "v_proj"])
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in trainable_names(student)} == {"q_proj", "v_proj"}
    train(student, "qwen2.5-vl", *make_optimizer(student.model, OptimConfig(lr=0.02, warmup_steps=0), 10), 2)
    student.save(tmp_path / "model")
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "model" / "adapter")
    merged_by_peft = adapted.merge_and_unload().state_dict()
    for name, value in merge_lora(student.model).items():
        assert torch.allclose(merged_by_peft[name], value, atol=1e-6), name


def trainable_names(student):
    return {name for name, value in student.model.named_parameters() if value.requires_grad}


def test_adapters_beside_bfloat16_weights_are_float32(tmp_path):
    folder = tiny_student("qwen3", tmp_path / "base")
    student = load(folder, dtype="bfloat16")
    dtypes = {name: value.dtype for name, value in student.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" not in name} == {torch.bfloat16}
    train(student, "qwen3", *make_optimizer(student.model, OptimConfig(lr=0.02, warmup_steps=0), 10), 2)
    student.save(tmp_path / "model")
    reloaded = load_student(StudentConfig(path=str(tmp_path / "model"), dtype="bfloat16"))
    assert {value.dtype for value in reloaded.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert (scored(reloaded, "qwen3") - scored(student, "qwen3")).abs().max() < 0.1


def test_adapters_with_checkpointed_activations_and_frozen_everything_else_get_the_same_gradients(tmp_path):
    folder = tiny_student("gemma3", tmp_path / "base")
    gradients = []
    for saving in (False, True):
        torch.manual_seed(7)
        settings = StudentConfig(path=str(folder), lora=LoraConfig(r=4), checkpoint_activations=saving)
        student = load_student(settings)
        student.model.train()
        scored(student, "gemma3").sum().backward()
        gradients.append({name: value.grad for name, value in student.model.named_parameters() if value.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(value.any() for value in gradients[0].values())
    for name, value in gradients[0].items():
        assert torch.allclose(gradients[1][name], value, atol=1e-6), name


def test_adapters_go_where_they_are_asked_to(tmp_path):
    folder = tiny_student("llava", tmp_path / "base")
    settings = StudentConfig(path=str(folder), freeze=[], lora=LoraConfig(parts=["language", "vision", "projector"]))
    student = load_student(settings)
    owners = parameter_parts(load_student(StudentConfig(path=str(folder))).model)
    layers = {name.partition(".lora_")[0] for name in trainable_names(student)}
    assert {owners[f"{layer}.weight"] for layer in layers} == {"language", "vision", "projector"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["q_porj"]}, r"student\.lora\.targets: 'q_porj' is no linear layer of language; there are \["),
        ({"parts": ["vision"]}, r"student\.freeze and student\.lora\.parts both name 'vision'"),
        ({"parts": ["projector"]}, r"Qwen3ForCausalLM has no linear layers in projector"),
    ],
    ids=["targets", "frozen", "nothing"],
)
def test_what_cannot_be_adapted_is_named(settings, message, tmp_path):
    folder = tiny_student("qwen3", tmp_path / "base")
    with pytest.raises(UsageError, match=message):
        load(folder, **settings)
