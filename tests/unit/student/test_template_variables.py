"""Further variables of the student's chat template, such as Qwen3's enable_thinking."""

import shutil

import pytest
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.pocket_building.tokenizer import CHAT_TEMPLATE
from vold_trainer.student.models import load_student

THOUGHTLESS = (
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student whose template ends the thought at once where enable_thinking is false, as Qwen3's does."""
    folder = tmp_path_factory.mktemp("variables") / "student"
    shutil.copytree(checkpoint_path("student"), folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + THOUGHTLESS)
    return folder


def test_a_variable_changes_every_prompt_of_the_student(folder):
    row = Example("row", ({"role": "user", "content": "1+1?"},), "2")
    plain, thoughtless = (
        load_student(StudentConfig(path=str(folder), chat_template_kwargs=variables))
        for variables in ({}, {"enable_thinking": False})
    )
    assert thoughtless.render(row) == plain.render(row) + "<think>\n\n</think>\n\n"
    (more,), (less,) = (student.prompt_ids([row]) for student in (thoughtless, plain))
    assert more[: len(less)] == less
    assert thoughtless.tokenizer.decode(more[len(less) :]) == "<think>\n\n</think>\n\n"
    assert thoughtless.text_ids([row]) == [more]


@pytest.mark.parametrize(
    ("name", "message"), [("enable_thinkin", "reads no variable 'enable_thinkin'"), ("tokenize", "is set by vold")]
)
def test_a_variable_that_would_have_no_effect_is_refused(folder, name, message):
    with pytest.raises(UsageError, match=f"student.chat_template_kwargs: .*{message}"):
        load_student(StudentConfig(path=str(folder), chat_template_kwargs={name: True}))
