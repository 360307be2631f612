"""Prompts: the same problem as a sentence and as a picture, through the tokenizer, the processor and the models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from vold_trainer.pocket.pictures import CELL, draw_picture
from vold_trainer.pocket.problems import sample_problems
from vold_trainer.pocket.world import make_example, make_examples
from vold_trainer.pocket_building.models import build_processor, build_student, build_teacher
from vold_trainer.pocket_building.tokenizer import ALPHABET, build_tokenizer
from vold_trainer.pocket_building.training import IGNORED, Sample, collate, encode_prompts
from vold_trainer.student.processors import load_processor


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def processor(tokenizer):
    return build_processor(tokenizer)


@pytest.fixture(scope="module")
def student(tokenizer):
    torch.manual_seed(0)
    return build_student(tokenizer).eval()


def test_twins_share_the_problem_and_differ_in_id_and_modality() -> None:
    texts, pictures = (make_examples("test", 40, modality=modality) for modality in ("text", "image"))
    for text, picture in zip(texts, pictures, strict=True):
        assert text.id.removesuffix("-text") == picture.id.removesuffix("-image")
        assert text.reference == picture.reference
        assert text.meta["expression"] == picture.meta["expression"]
        assert not text.images
        assert len(picture.images) == 1
        assert text.meta["expression"] in text.messages[0]["content"].replace(" ", "")
        assert text.meta["expression"] not in str(picture.messages)


def test_examples_are_the_same_every_time() -> None:
    first, second = (make_examples("test", 5, modality="image", seed=3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))
        assert a.messages == b.messages


def test_the_expression_stands_at_many_places_in_texts_and_pictures() -> None:
    texts = {
        len(e.messages[0]["content"].split(e.meta["expression"])[0])
        for e in make_examples("train", 200, modality="text")
    }
    pictures = make_examples("train", 200, modality="image")
    assert len(texts) > 15
    assert len({e.meta["cells"].index(e.meta["expression"][0]) for e in pictures}) > 5
    assert len({e.images[0].size[1] for e in pictures}) > 1


def test_each_cell_of_a_picture_shows_its_character() -> None:
    picture = draw_picture("3+(4-5)", "a seed")
    assert picture.cells.strip() == "3+(4-5)"
    assert picture.image.size == (picture.columns * CELL, len(picture.cells) // picture.columns * CELL)
    pixels = np.asarray(picture.image.convert("L"))
    for place, character in enumerate(picture.cells):
        top, left = place // picture.columns * CELL, place % picture.columns * CELL
        darkest = pixels[top : top + CELL, left : left + CELL].min()
        assert (darkest > 130) == (character == " ")


def test_an_unknown_modality_is_refused() -> None:
    with pytest.raises(ValueError, match="modality='video' is unknown; choose one of text, image"):
        make_examples("test", 1, modality="video")


@given(st.text(alphabet=ALPHABET))
def test_the_alphabet_survives_the_tokenizer(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_think_tags_stay_visible_and_the_end_of_turn_does_not(tokenizer) -> None:
    written = "<think>1+1\n1+1=2</think>\\boxed{2}"
    ids = tokenizer(written + "<|im_end|>").input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == written


def test_labels_are_the_completion_and_its_end(tokenizer, processor) -> None:
    problem = sample_problems("train", 1)[0]
    for modality in ("text", "image"):
        prompt = make_example(problem, modality)
        batch = collate(processor, [Sample(prompt, "12"), Sample(prompt, "7")])
        targets = [tokenizer.decode(row[row != IGNORED]) for row in batch.labels_BS]
        assert targets == ["12<|im_end|>", "7<|im_end|>"]


def test_saved_models_load_through_the_auto_classes(tmp_path, tokenizer, processor, student) -> None:
    teacher = build_teacher(tokenizer)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    student.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    assert torch.equal(loaded.lm_head.weight, teacher.lm_head.weight)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "student").config.model_type == "qwen2_5_vl"
    prompts = make_examples("test", 3, modality="image")
    loaded_processor = load_processor(tmp_path / "student")
    for key, value in encode_prompts(processor, prompts).items():
        assert torch.equal(encode_prompts(loaded_processor, prompts)[key], value)
    for name in ("teacher", "student"):
        assert AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() == tokenizer.get_vocab()
    assert load_processor(tmp_path / "teacher").get_vocab() == tokenizer.get_vocab()


def test_padding_and_company_change_nothing(processor, student) -> None:
    prompts = [*make_examples("test", 4, modality="image"), *make_examples("test", 3, modality="text")]
    with torch.inference_mode():
        together = student(**encode_prompts(processor, prompts)).logits[:, -1]
        for row, prompt in enumerate(prompts):
            alone = student(**encode_prompts(processor, [prompt])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_a_cell_is_one_visual_token(tokenizer, processor) -> None:
    for prompt in make_examples("test", 10, modality="image"):
        ids = encode_prompts(processor, [prompt])["input_ids"][0].tolist()
        assert ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == len(prompt.meta["cells"])


def test_models_are_small(tokenizer, student) -> None:
    for model in (build_teacher(tokenizer), student):
        assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
