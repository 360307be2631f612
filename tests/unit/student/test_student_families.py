"""Every family of students passes the same tests: real model and processor classes, tiny random weights.

What a batch gives is compared with transformers' own way for one sequence: apply_chat_template, then a plain forward.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_students import FAMILIES, VISION_FAMILIES, tiny_student
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.rollout.hf import generate
from vold_trainer.student.batching import make_batch, micro_batches
from vold_trainer.student.models import CompletionScorer, load_student, logits
from vold_trainer.student.parts import PARTS, parameter_parts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each family, created at the first request."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def folder(family):
        if family not in made:
            made[family] = tiny_student(family, root / family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def students(folders):
    """One student of each family, for tests that change nothing about it."""
    made = {}

    def student(family):
        if family not in made:
            made[family] = load(folders(family))
        made[family].model.zero_grad(set_to_none=True)
        made[family].model.eval()
        return made[family]

    return student


def load(folder, **settings):
    return load_student(StudentConfig(path=str(folder), **{"freeze": []} | settings))


def picture(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def make_example(name, text, *images):
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}] if images else text
    return Example(name, ({"role": "user", "content": content},), "", tuple(images))


TEXT = [make_example("t1", "What is 2 + 2?"), make_example("t2", "Say it.")]
WITH_SYSTEM = Example("t3", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}), "")
PICTURES = [
    make_example("i1", "What is it?", picture(90, 60, 1)),
    make_example("i2", "How many are there?", picture(40, 120, 2)),
]
TWO = make_example("i3", "Which is larger?", picture(64, 64, 3), picture(100, 50, 4))
MIXED = [TEXT[0], PICTURES[0], TWO, TEXT[1], PICTURES[1], WITH_SYSTEM]
CASES = {"text": [*TEXT, WITH_SYSTEM], "image": [*PICTURES, TWO], "mixed": MIXED}
EVERY_CASE = [(family, case) for family in FAMILIES for case in CASES if family != "qwen3" or case == "text"]


def prompts_of(family):
    return MIXED if family in VISION_FAMILIES else CASES["text"]


def completions(student, count, seed=0):
    """Random ids of different lengths, none of them the place of an image."""
    allowed = sorted(set(range(student.vocab_size)) - set(student.placeholder_ids))
    generator = torch.Generator().manual_seed(seed)
    lengths = [3 + 2 * (index % 4) for index in range(count)]
    return [[allowed[i] for i in torch.randint(len(allowed), (n,), generator=generator)] for n in lengths]


def alone(student, model, example, ids):
    """Log-probabilities of a completion by transformers alone, one sequence, nothing padded."""
    if student.processor is student.tokenizer:
        text = student.tokenizer.apply_chat_template(list(example.messages), tokenize=False, add_generation_prompt=True)
        inputs = dict(student.tokenizer(text, add_special_tokens=False, return_tensors="pt"))
    else:
        images = iter(example.images)
        conversation = []
        for message in example.messages:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            filled = [{**part, "image": next(images)} if part["type"] == "image" else part for part in parts]
            conversation.append({"role": message["role"], "content": filled})
        inputs = dict(
            ProcessorMixin.apply_chat_template(  # SmolVLM's own asks for a video processor
                student.processor, conversation, add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )
        )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    more = torch.tensor([ids])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(more)], -1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], -1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = model(**inputs).logits[0, length - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, more[0].unsqueeze(-1)).flatten()


def scored(student, examples, ids):
    batch = make_batch(student, examples, ids)
    return CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N


def backward(student, examples, ids, micro=64):
    """The gradients of the mean log-probability of all tokens, by name, from passes of `micro` sequences."""
    student.model.zero_grad(set_to_none=True)
    student.model.train()
    for indices in micro_batches([len(part) for part in ids], micro):
        found = scored(student, [examples[i] for i in indices], [ids[i] for i in indices])
        (found.sum() / sum(map(len, ids))).backward()
    return {name: value.grad for name, value in student.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("family", "case"), EVERY_CASE, ids=lambda value: value)
@torch.no_grad()
def test_a_batch_gives_what_a_plain_forward_of_each_sequence_gives(students, family, case):
    student = students(family)
    examples = CASES[case]
    ids = completions(student, len(examples))
    found = scored(student, examples, ids).split([len(part) for part in ids])
    for example, part, logprobs in zip(examples, ids, found, strict=True):
        expected = alone(student, student.model, example, part)
        assert torch.allclose(logprobs, expected, atol=2e-5), (example.id, (logprobs - expected).abs().max())


@pytest.mark.parametrize("family", VISION_FAMILIES)
@torch.no_grad()
def test_the_picture_is_seen(students, family):
    student = students(family)
    other = make_example("i1", "What is it?", picture(90, 60, 9))
    ids = completions(student, 1)
    assert not torch.allclose(scored(student, [PICTURES[0]], ids), scored(student, [other], ids), atol=1e-6)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_within_a_step_a_batch_has_the_inputs_that_its_prompts_have_together(students, family):
    """Put together from prompts that were processed alone, in other batches, with images of other sizes."""
    student = students(family)
    batches = [PICTURES, MIXED, [PICTURES[1], TWO], [TWO], MIXED[::-1], [PICTURES[0], PICTURES[0]]]
    expected = [student.encode(batch) for batch in batches]
    with student.pictures.within_steps(0):
        for batch, whole in zip(batches, expected, strict=True):
            found = student.encode(batch)
            assert found.keys() == whole.keys()
            for name, value in whole.items():
                assert value.dtype == found[name].dtype, name
                assert torch.equal(value, found[name]), name
        assert student.pictures.joins
        assert student.pictures.stored_input_bytes > 0
    assert student.pictures.stored_input_bytes == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_get_the_same_logprobs_when_they_are_scored(students, family):
    student = students(family)
    examples = [example for example in prompts_of(family) if len(example.images) < 2]
    rollouts = generate(student, examples, group=2, max_tokens=6, seed=1, logprobs=True)
    batch = make_batch(student, [rollout.example for rollout in rollouts], [rollout.ids for rollout in rollouts])
    places_NK = torch.tensor(student.placeholder_ids or [0]).expand(len(batch.ids_N), -1)
    with torch.no_grad():
        found = CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N, support_ids_NK=places_NK)
    at_sampling = torch.cat([torch.from_numpy(rollout.logprobs) for rollout in rollouts])
    # Image placeholders are never sampled, so the sampling distribution may or may not include them.
    among_the_rest = found.logprobs_N - torch.log1p(-found.support_logprobs_NK.exp().sum(-1))
    assert torch.allclose(found.logprobs_N, at_sampling, atol=2e-5) or torch.allclose(
        among_the_rest, at_sampling, atol=2e-5
    )
    for rollout in rollouts:
        assert not set(student.placeholder_ids) & set(rollout.ids)
        assert rollout.prompt_ids == tuple(student.prompt_ids([rollout.example])[0])


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_image_families_know_which_ids_stand_for_pictures(students, family):
    student = students(family)
    prompt = student.prompt_ids([PICTURES[0]])[0]
    assert set(student.placeholder_ids) & set(prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_a_part_freezes_it_and_nothing_else(folders, students, family):
    examples = prompts_of(family)
    free = students(family)
    ids = completions(free, len(examples))
    trainable = set(backward(free, examples, ids))
    owners = parameter_parts(free.model)
    parts = [part for part in PARTS if part in owners.values()]
    assert set(parts) >= ({"vision", "projector"} if family in VISION_FAMILIES else set()) | {"language", "embeddings"}
    for part in parts:
        assert part in {owners[name] for name in trainable}
        student = load(folders(family), freeze=[part])
        still = {name for name, value in student.model.named_parameters() if not value.requires_grad}
        assert still == {name for name, owner in owners.items() if owner == part}
        assert set(backward(student, examples, ids)) == trainable - still


NAMES = {
    "qwen2.5-vl": {"vision": "model.visual.blocks", "projector": "model.visual.merger"},
    "qwen3-vl": {"vision": "model.visual.pos_embed", "projector": "model.visual.deepstack_merger_list.0"},
    "smolvlm": {"vision": "model.vision_model.", "projector": "model.connector.", "head": "lm_head."},
    "idefics3": {
        "vision": "model.vision_model.",
        "projector": "model.connector.",
        "language": "model.text_model.layers",
    },
    "llava": {"vision": "model.vision_tower.", "projector": "model.multi_modal_projector.", "head": "lm_head."},
    "llava-onevision": {"vision": "model.vision_tower.", "projector": "model.image_newline"},
    "gemma3": {"vision": "model.vision_tower.", "projector": "model.multi_modal_projector."},
    "qwen3": {"language": "model.layers.", "embeddings": "model.embed_tokens."},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_called_by_their_names(students, family):
    owners = parameter_parts(students(family).model)
    for part, prefix in NAMES[family].items():
        assert {owner for name, owner in owners.items() if name.startswith(prefix)} == {part}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_depend_on_micro_batches_nor_on_checkpointing(folders, students, family):
    examples = prompts_of(family)
    student = students(family)
    ids = completions(student, len(examples))
    whole = backward(student, examples, ids)
    for micro in (1, 2, 4):
        assert_same(backward(student, examples, ids, micro), whole)
    saving = load(folders(family), checkpoint_activations=True)
    assert_same(backward(saving, examples, ids), whole)


def assert_same(found, expected):
    assert set(found) == set(expected)
    scale = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-5 * scale), name


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_products_keep_float32_weights_and_come_close(folders, students, family):
    examples = prompts_of(family)
    exact = students(family)
    ids = completions(exact, len(examples))
    expected = scored(exact, examples, ids)
    mixed = load(folders(family), compute="bfloat16")
    found = scored(mixed, examples, ids)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.1
    gradients = backward(mixed, examples, ids)
    assert {value.dtype for value in gradients.values()} == {torch.float32}
    rollouts = generate(mixed, examples[:1], max_tokens=4, seed=1, logprobs=True)
    with torch.no_grad():
        reloaded = scored(mixed, examples[:1], [rollouts[0].ids])
    assert torch.allclose(reloaded, torch.from_numpy(rollouts[0].logprobs), atol=0.1)
    rounded = load(folders(family), dtype="bfloat16")
    assert {value.dtype for value in rounded.model.parameters()} == {torch.bfloat16}
    assert (scored(rounded, examples, ids) - expected).abs().max() < 0.1


@pytest.mark.parametrize("options", [{"compute": "bfloat16"}, {"dtype": "bfloat16"}], ids=["autocast", "weights"])
@torch.no_grad()
def test_the_heads_product_can_be_float32(folders, options):
    """Of the same hidden states: no rounding of a logit, where bfloat16's grid shows."""
    coarse, fine = (load(folders("qwen3"), **options, head_dtype=dtype) for dtype in (None, "float32"))
    hidden = 40 * torch.randn(64, coarse.model.config.get_text_config().hidden_size)
    weight = coarse.model.get_output_embeddings().weight.double()
    expected = hidden.to(coarse.model.dtype).double() @ weight.T
    error = {}
    for name, student in (("coarse", coarse), ("fine", fine)):
        found = logits(student.model, hidden.to(student.model.dtype))
        error[name] = (found.double() - expected).abs().max().item()
    assert logits(fine.model, hidden.to(fine.model.dtype)).dtype == torch.float32
    assert error["fine"] < 1e-4 < 1e-2 < error["coarse"]
    example = prompts_of("qwen3")[:1]
    whole = fine.model(**fine.encode(example)).logits
    assert whole.dtype == torch.float32, "in generation too"


@torch.no_grad()
def test_a_float32_head_changes_nothing_where_all_is_float32(folders):
    examples = prompts_of("qwen3")
    plain, head = (load(folders("qwen3"), head_dtype=dtype) for dtype in (None, "float32"))
    ids = completions(plain, len(examples))
    assert torch.equal(scored(plain, examples, ids), scored(head, examples, ids))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_saved_student_is_an_ordinary_folder(folders, students, family, tmp_path):
    student = students(family)
    student.save(tmp_path)
    pictures = family in VISION_FAMILIES
    auto = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path)
    for name, value in student.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    reloaded = load(tmp_path)
    examples = prompts_of(family)
    inputs = student.encode(examples)
    for name, value in reloaded.encode(examples).items():
        assert torch.equal(value, inputs[name]), name
    if pictures:
        settings = json.loads((tmp_path / "processor_config.json").read_text())
        source = json.loads((folders(family) / "processor_config.json").read_text())
        assert settings["processor_class"] == source["processor_class"]
        video = folders(family) / "video_preprocessor_config.json"
        if video.exists():
            assert json.loads((tmp_path / video.name).read_text()) == json.loads(video.read_text())
        else:
            assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == source["processor_class"]
