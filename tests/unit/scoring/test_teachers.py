"""Several teachers: which teacher scores a row, and configs that cannot work."""

from pathlib import Path

import pytest
from vold_trainer.config import TrainConfig, dump, load
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.scoring.teachers import SINGLE_TEACHER, TeacherRouter

THREE = (
    "objective={name: mopd}",
    "teacher=null",
    "teachers={sums: {url: grpc://a:1, tags: [sum, add]}, words: {url: [grpc://b:1, grpc://b:2], tags: [word]}, "
    "rest: {url: grpc://c:1, default: true}}",
)


def config(*overrides):
    return load(TrainConfig, Path("pocket:vold"), overrides)


def row(category="", **meta):
    return Example("row-1", ({"role": "user", "content": "?"},), "1", category=category, meta=meta)


@pytest.mark.parametrize(
    ("example", "name"),
    [
        (row(teacher="words", tags=["sum"]), "words"),
        (row(tags=["sum"]), "sums"),
        (row(tags=["other", "word", "sum"]), "words"),
        (row(category="add"), "sums"),
        (row(category="add", tags=["word"]), "words"),
        (row(tags=["other"]), "rest"),
        (row(), "rest"),
    ],
)
def test_a_row_goes_to_the_teacher_it_names_then_by_tag_then_to_the_default(example, name):
    assert TeacherRouter(config(*THREE))(example) == name


def test_a_row_without_a_teacher_is_an_error_before_the_run():
    router = TeacherRouter(config(*THREE[:2], "teachers={sums: {url: grpc://a:1, tags: [sum]}}"))
    with pytest.raises(UsageError, match=r"row 'row-1' names no teacher, and nobody claims its tags \['odd'\]"):
        router.check([row(tags=["sum"]), row(tags=["odd"])])
    with pytest.raises(UsageError, match="row 'row-1': field 'teacher' is 'nobody'; the config's teachers are sums"):
        router.check([row(teacher="nobody")])


def test_a_single_teacher_needs_no_routes():
    single = config()
    assert list(single.used_teachers) == [SINGLE_TEACHER]
    assert TeacherRouter(single)(row(teacher="whoever")) == SINGLE_TEACHER
    assert config("objective.name=grpo").used_teachers == {}


def test_several_teachers_replace_the_default_teacher(tmp_path):
    (tmp_path / "several.yaml").write_text(
        "out: x\nstudent: {path: pocket:student}\nobjective: {name: mopd}\nteachers: {a: {url: 'grpc://a:1'}}\n"
    )
    several = load(TrainConfig, tmp_path / "several.yaml")
    assert several.teacher is None
    (tmp_path / "again.yaml").write_text(dump(several))
    assert load(TrainConfig, tmp_path / "again.yaml") == several


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teachers={a: {url: grpc://a:1}}"], r"teacher and teachers \(a\) are both set: set teacher=null"),
        (["teacher=null", "teachers={a: {tagz: [x]}}"], "unknown key 'teachers.a.tagz'; did you mean 'tags'"),
        (
            ["teacher=null", "teachers={a: {tags: [x]}, b: {tags: [x]}}"],
            "teachers.a and teachers.b both claim the tag 'x'",
        ),
        (
            ["teacher=null", "teachers={a: {default: true}, b: {default: true}}"],
            "teachers a and b are both the default: set default=true for one only",
        ),
        (["teacher=null", "teachers={a: {url: grpc://a:1, default: 7}}"], "teachers.a.default: .*; got 7"),
    ],
)
def test_routes_that_cannot_work_are_named(overrides, message):
    with pytest.raises(UsageError, match=message):
        config(*overrides)
