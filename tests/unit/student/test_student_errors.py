"""What a student cannot be or do is said before anything is trained, with the field, the value and the remedy."""

import json
import shutil
import sys

import pytest
import torch
from tiny_students import tiny_student
from transformers import GraniteConfig, GraniteForCausalLM
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.student import models
from vold_trainer.student.models import load_student


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("students")
    for family in ("qwen3", "llava", "gemma3"):
        tiny_student(family, root / family)
    return root


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_liger_without_cuda_is_an_error_and_nothing_less(root):
    with pytest.raises(UsageError, match=r"student\.liger needs a CUDA device.*set student\.liger=false"):
        load_student(StudentConfig(path=str(root / "qwen3"), liger=True))


@pytest.mark.parametrize(
    ("family", "freeze", "message"),
    [
        ("llava", ["eyes"], r"student\.freeze: 'eyes' is no part; choose from \['vision', 'projector', 'language'"),
        ("qwen3", ["vision"], None),
        ("gemma3", ["head"], None),
    ],
    ids=["unknown", "text model", "tied head"],
)
def test_freezing_what_is_not_there(root, family, freeze, message):
    settings = StudentConfig(path=str(root / family), freeze=freeze)
    if message:
        with pytest.raises(UsageError, match=message):
            load_student(settings)
        return
    model = load_student(settings).model
    still = [value for value in model.parameters() if not value.requires_grad]
    tied = family == "gemma3"
    assert len(still) == tied
    assert not tied or still[0] is model.get_input_embeddings().weight


def test_a_template_that_drops_the_question_is_an_error(root):
    student = load_student(StudentConfig(path=str(root / "llava")))
    example = Example("q1", ({"role": "user", "content": "How far is it?"},), "")
    assert "How far is it?" in student.render(example)
    student.processor.chat_template = "{% for message in messages %}{{ message['role'] }}: {% endfor %}"
    with pytest.raises(UsageError, match=r"example 'q1': the student's chat template drops 'How far is it\?'"):
        student.encode([example])


SYSTEM_TURN = "{% if messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
TURNS = (
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}"
)
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}<|im_end|>"
    "{% endif %}{% endfor %}"
)


def with_template(root, folder, template):
    shutil.copytree(root / "qwen3", folder)
    (folder / "chat_template.jinja").write_text(template)
    return StudentConfig(path=str(folder))


def test_a_template_that_drops_the_system_prompt_is_an_error_of_the_row(root, tmp_path):
    student = load_student(with_template(root, tmp_path / "student", TURNS + OPENING))
    turns = ({"role": "system", "content": "Always box."}, {"role": "user", "content": "1 + 3?"})
    with pytest.raises(UsageError, match=r"chat template drops 'Always box\.' of the turn of 'system'"):
        student.render(Example("q1", turns, ""))
    assert "1 + 3?" in student.render(Example("q1", turns[1:], ""))


def test_a_template_that_does_not_open_the_answers_turn_is_refused(root, tmp_path):
    with pytest.raises(UsageError, match=r"does not open the answer's turn, which '<\|im_start\|>assistant' does"):
        load_student(with_template(root, tmp_path / "without", SYSTEM_TURN + TURNS))
    opened = load_student(with_template(root, tmp_path / "with", SYSTEM_TURN + TURNS + OPENING))
    assert opened.render(Example("q", ({"role": "user", "content": "a"},), "")).endswith("assistant\n")
    load_student(with_template(root, tmp_path / "none", MISTRAL))  # whose answers follow the question itself


def test_content_is_given_in_the_form_that_the_template_reads(root):
    content = [{"type": "text", "text": "Why? "}, {"type": "text", "text": "So."}]
    parts = Example("q", ({"role": "user", "content": content},), "")
    text = load_student(StudentConfig(path=str(root / "qwen3")))
    assert "user\nWhy? So.<|im_end|>" in text.render(parts)
    for family in ("llava", "gemma3"):
        student = load_student(StudentConfig(path=str(root / family)))
        words = Example("q", ({"role": "system", "content": "Short."}, {"role": "user", "content": "Why?"}), "")
        rendered = student.render(words)
        assert "Short." in rendered
        assert "Why?" in rendered


def test_there_is_one_bos_however_the_prompt_begins(root):
    for family in ("llava", "gemma3"):
        student = load_student(StudentConfig(path=str(root / family)))
        ids = student.prompt_ids([Example("q", ({"role": "user", "content": "Why?"},), "")])[0]
        assert ids[0] == student.tokenizer.bos_token_id
        assert ids.count(student.tokenizer.bos_token_id) == 1


def test_logits_that_are_made_in_an_unknown_way_are_an_error(root, monkeypatch):
    path = str(root / "qwen3")
    real = models.logits
    monkeypatch.setattr(models, "logits", lambda model, hidden: 2 * real(model, hidden))
    with pytest.raises(UsageError, match="Qwen3ForCausalLM computes its logits in a way that vold does not know"):
        load_student(StudentConfig(path=path))


def test_a_family_that_scales_its_logits_is_known(root, tmp_path):
    vocabulary = len(load_student(StudentConfig(path=str(root / "qwen3"))).tokenizer)
    config = GraniteConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        logits_scaling=8.0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((root / "qwen3" / name).read_bytes())
    load_student(StudentConfig(path=str(tmp_path)))


def test_a_processor_that_lacks_a_package_is_named_with_it(root, tmp_path, monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    folder = tiny_student("smolvlm", tmp_path)
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"] == "SmolVLMProcessor"
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(UsageError, match=r"needs num2words, which is not installed: .* the extra 'smolvlm'"):
        load_student(StudentConfig(path=str(folder)))
