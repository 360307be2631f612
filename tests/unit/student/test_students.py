"""Students: loading, freezing, batches whose numbers are a plain forward's, rollouts that are handed on."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from vold_trainer.config import StudentConfig
from vold_trainer.errors import UsageError
from vold_trainer.pocket.world import make_examples
from vold_trainer.pocket_building.models import build_processor, build_student
from vold_trainer.pocket_building.tokenizer import build_tokenizer
from vold_trainer.rollout.hf import generate
from vold_trainer.student.batching import make_batch, micro_batches
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.parts import freeze


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A vision-language student and a text-only one, untrained."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("students")
    tokenizer = build_tokenizer()
    build_student(tokenizer).save_pretrained(root / "vlm")
    build_processor(tokenizer).save_pretrained(root / "vlm")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(root / "text")
    tokenizer.save_pretrained(root / "text")
    return root


@pytest.fixture(params=["vlm-text", "vlm-image", "text-text"])
def case(request, folders):
    kind, modality = request.param.split("-")
    student = load_student(StudentConfig(path=str(folders / kind)))
    return student, make_examples("train", 6, modality=modality)


def test_batched_logprobs_equal_a_plain_forward_of_each_sequence(case):
    student, prompts = case
    rollouts = generate(student, prompts, group=2, max_tokens=9, seed=3)
    scorer = CompletionScorer(student.model).eval()
    batch = make_batch(student, [r.example for r in rollouts], [r.ids for r in rollouts])
    with torch.no_grad():
        found, entropy, *_ = scorer(batch.inputs, batch.predicts_BS, batch.ids_N)
        at = 0
        for rollout in rollouts:
            inputs = student.encode([rollout.example])
            assert tuple(inputs["input_ids"][0].tolist()) == rollout.prompt_ids
            ids = torch.tensor([[*rollout.prompt_ids, *rollout.ids]])
            extra = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
            if "mm_token_type_ids" in extra:
                zeros = torch.zeros(1, len(rollout.ids), dtype=torch.long)
                extra["mm_token_type_ids"] = torch.cat([extra["mm_token_type_ids"], zeros], -1)
            logits = student.model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits
            logprobs = logits[0, len(rollout.prompt_ids) - 1 : -1].float().log_softmax(-1)
            n = len(rollout.ids)
            plain = logprobs.gather(-1, torch.tensor(rollout.ids)[:, None]).flatten()
            assert torch.allclose(found[at : at + n], plain, atol=1e-5)
            assert torch.allclose(entropy[at : at + n], -(logprobs.exp() * logprobs).sum(-1), atol=1e-5)
            at += n
    padded = batch.pad(found)
    assert torch.equal(padded[batch.mask_BT], found)
    assert (padded[~batch.mask_BT] == 0).all()


def test_every_completion_is_handed_on_once_and_seeds_repeat(case):
    student, prompts = case
    seen = []
    first = generate(student, prompts, group=3, max_tokens=12, seed=5, on_finished=seen.extend)
    assert sorted(r.row for r in seen) == [r.row for r in first] == list(range(18))
    assert {r.row: r for r in seen} == {r.row: r for r in first}
    assert [r.example.id for r in first] == [p.id for p in prompts for _ in range(3)]
    repeated = generate(student, prompts, group=3, max_tokens=12, seed=5)
    assert [r.ids for r in repeated] == [r.ids for r in first]
    assert [r.ids for r in generate(student, prompts, group=3, max_tokens=12, seed=6)] != [r.ids for r in first]
    places = set(student.placeholder_ids)
    assert not any(places & set(r.ids) for r in first)
    for r in first:
        assert r.truncated == (r.ids[-1] not in student.eos_ids)


def test_greedy_answers_do_not_depend_on_the_batch(case):
    student, prompts = case
    together = generate(student, prompts, max_tokens=8, temperature=0.0)
    alone = [generate(student, [prompt], max_tokens=8, temperature=0.0)[0] for prompt in prompts]
    assert [r.ids for r in together] == [r.ids for r in alone]


def test_freezing_by_part(folders):
    student = load_student(StudentConfig(path=str(folders / "vlm"), freeze=["vision"]))
    trainable = {name for name, value in student.model.named_parameters() if value.requires_grad}
    assert any("merger" in name for name in trainable)
    assert all("merger" in name for name in trainable if "visual" in name)
    assert freeze(student.model, ["projector", "embeddings"]) > 0
    trainable = {name for name, value in student.model.named_parameters() if value.requires_grad}
    assert trainable
    assert not any("visual" in name or "embed" in name for name in trainable)


def test_a_saved_student_is_an_ordinary_folder(folders, tmp_path):
    student = load_student(StudentConfig(path=str(folders / "vlm")))
    student.save(tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    for name, value in student.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert load_student(StudentConfig(path=str(tmp_path / "saved"))).processor.image_processor is not None


def test_what_cannot_be_loaded_or_read_is_named(folders, tmp_path):
    with pytest.raises(UsageError, match=r"no model folder: there is no config\.json"):
        load_student(StudentConfig(path=str(tmp_path)))
    with pytest.raises(UsageError, match="no pocket checkpoint 'pupil'"):
        load_student(StudentConfig(path="pocket:pupil"))
    text = load_student(StudentConfig(path=str(folders / "text")))
    with pytest.raises(UsageError, match="reads text only, but example 'train-000000-image' has an image"):
        text.encode(make_examples("train", 1, modality="image"))
    with pytest.raises(ValueError, match=r"completions\[1\] is empty"):
        make_batch(text, make_examples("train", 2, modality="text"), [[3], []])


def test_micro_batches_hold_every_index_once_with_like_lengths_together():
    lengths = [5, 1, 4, 1, 3, 9, 2]
    parts = micro_batches(lengths, 3)
    assert sorted(index for part in parts for index in part) == list(range(7))
    assert [sorted(lengths[i] for i in part) for part in parts] == [[1, 1, 2], [3, 4, 5], [9]]


def test_a_saved_student_has_no_penalties_and_temperature_of_its_base(folders, tmp_path):
    """Qwen2.5-VL is published with a repetition penalty of 1.05 and a temperature of 1e-6."""
    student = load_student(StudentConfig(path=str(folders / "text")))
    eos = student.tokenizer.eos_token_id
    published = GenerationConfig(eos_token_id=[eos, 5], repetition_penalty=1.05, temperature=1e-6, do_sample=True)
    student.model.generation_config = published
    student.save(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved").to_diff_dict()
    assert saved["eos_token_id"] == [eos, 5]
    assert not {"repetition_penalty", "temperature", "do_sample", "top_p", "top_k"} & saved.keys()
    assert student.model.generation_config is published, "the student in memory is as it was"
    assert load_student(StudentConfig(path=str(tmp_path / "saved"))).eos_ids == [eos, 5]
