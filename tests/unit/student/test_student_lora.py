"""LoRA students: only adapters learn, they are saved and resumed, and an export is a plain model that agrees."""

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
from vold_trainer.processes.wrapping import Wrapped
from vold_trainer.rollout.hf import generate
from vold_trainer.runs.saving import Saver
from vold_trainer.student.batching import make_batch
from vold_trainer.student.lora import merged
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.parts import part_of

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


def learn(student, family, optimizer, scheduler, steps):
    student.model.train()
    for _ in range(steps):
        (-scored(student, family).mean()).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    student.model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_learn_and_an_export_gives_the_same_numbers(family, tmp_path):
    folder = tiny_student(family, tmp_path / "base")
    base = load_student(StudentConfig(path=str(folder), freeze=[]))
    student = load(folder)
    before = {name: value.detach().clone() for name, value in student.model.named_parameters()}
    learning = {name for name, value in student.model.named_parameters() if value.requires_grad}
    assert learning == {name for name in before if ".lora_" in name}
    owners = part_of(base.model)
    assert {owners[f"{name.partition('.lora_')[0]}.weight"] for name in learning} == {"language"}
    with torch.no_grad():
        assert torch.equal(scored(student, family), scored(base, family))

    optimizer, scheduler = make_optimizer(student.model, OptimConfig(lr=0.02, warmup_steps=0), 10)
    learn(student, family, optimizer, scheduler, 3)
    changed = {name for name, value in student.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == learning
    with torch.no_grad():
        learned = scored(student, family)
        assert (learned - scored(base, family)).abs().max() > 1e-3
        drawn = generate(student, examples(family)[:1], max_tokens=4, temperature=0.0)
        student.save(tmp_path / "model")
        assert torch.equal(scored(student, family), learned)

        auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
        plain = auto.from_pretrained(tmp_path / "model")
        assert set(plain.state_dict()) == set(base.model.state_dict())
        again = load_student(StudentConfig(path=str(tmp_path / "model"), freeze=[]))
        assert torch.allclose(scored(again, family), learned, atol=1e-5)
        redrawn = generate(again, examples(family)[:1], max_tokens=4, temperature=0.0)
        assert [one.ids for one in redrawn] == [one.ids for one in drawn]


def adapting(folder, out, family, steps):
    """A run's student with adapters, what saves it, and `steps` steps of it done."""
    student = load(folder)
    optim = OptimConfig(lr=0.01, warmup_steps=0)
    config = TrainConfig(out=out, student=StudentConfig(path=str(folder)), steps=10, optim=optim)
    ranks = Ranks(make_accelerator())
    wrapped = Wrapped(student, optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, wrapped, ranks, {"prompts": 8})
    learn(student, family, wrapped.optimizer, wrapped.scheduler, steps)
    return student, wrapped, saver


@pytest.mark.parametrize("family", ["qwen3-vl", "gemma3", "qwen3"])
def test_resuming_gives_the_same_numbers_as_going_on(family, tmp_path):
    folder = tiny_student(family, tmp_path / "base")
    first, wrapped, saver = adapting(folder, tmp_path / "run", family, 2)
    saver.save(2, {})
    learn(first, family, wrapped.optimizer, wrapped.scheduler, 2)

    torch.manual_seed(99)
    second, wrapped, saver = adapting(folder, tmp_path / "run", family, 0)
    assert saver.begin(resume=True).step == 2
    learn(second, family, wrapped.optimizer, wrapped.scheduler, 2)
    with torch.no_grad():
        assert torch.equal(scored(second, family), scored(first, family))


def test_the_exported_adapter_is_one_that_peft_loads(tmp_path):
    from peft import PeftModel

    folder = tiny_student("qwen2.5-vl", tmp_path / "base")
    student = load(folder, targets=["q_proj", "v_proj"])
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in learning_of(student)} == {"q_proj", "v_proj"}
    learn(student, "qwen2.5-vl", *make_optimizer(student.model, OptimConfig(lr=0.02, warmup_steps=0), 10), 2)
    student.save(tmp_path / "model")
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "model" / "adapter")
    merged_by_peft = adapted.merge_and_unload().state_dict()
    for name, value in merged(student.model).items():
        assert torch.allclose(merged_by_peft[name], value, atol=1e-6), name


def learning_of(student):
    return {name for name, value in student.model.named_parameters() if value.requires_grad}


def test_adapters_beside_bfloat16_weights_are_float32(tmp_path):
    folder = tiny_student("qwen3", tmp_path / "base")
    student = load(folder, dtype="bfloat16")
    dtypes = {name: value.dtype for name, value in student.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" not in name} == {torch.bfloat16}
    learn(student, "qwen3", *make_optimizer(student.model, OptimConfig(lr=0.02, warmup_steps=0), 10), 2)
    student.save(tmp_path / "model")
    again = load_student(StudentConfig(path=str(tmp_path / "model"), dtype="bfloat16"))
    assert {value.dtype for value in again.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert (scored(again, "qwen3") - scored(student, "qwen3")).abs().max() < 0.1


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
    owners = part_of(load_student(StudentConfig(path=str(folder))).model)
    layers = {name.partition(".lora_")[0] for name in learning_of(student)}
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
