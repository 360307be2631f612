"""`vold check`: what is well, what is not, and nothing spent."""

import json
from pathlib import Path

import pytest
from vold_trainer.checking import run_check
from vold_trainer.config import TrainConfig, load


@pytest.fixture
def config(tmp_path, pocket_teacher, verifier):
    def make(*overrides: str) -> TrainConfig:
        own = [f"out={tmp_path / 'run'}", "student.path=pocket:student", "data.limit=200"]
        urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
        return load(TrainConfig, Path("pocket:vold"), [*own, *urls, *overrides])

    return make


def test_a_config_that_is_well_goes_through_a_dry_step_and_leaves_nothing(config, tmp_path):
    found = run_check(config())
    assert found.all_well, found.rows
    topics = {"data", "student", "memory", "teacher", "verifier", "folder", "a dry step"}
    assert {row.topic for row in found.rows} == topics
    (dry,) = found.of("a dry step")
    assert "loss" in dry.text
    assert not (tmp_path / "run").exists()
    assert any("50 of 50 references" in row.text for row in found.of("verifier"))


@pytest.mark.parametrize(
    ("override", "topic", "says"),
    [
        ("teacher.url=grpc://127.0.0.1:9", "teacher", "127.0.0.1:9"),
        ("verifier.name=nobody", "verifier", "verifier.name is 'nobody'"),
        ("student.path=/no/such/folder", "student", "/no/such/folder"),
        ("data.source=/no/such/file.jsonl", "data", "/no/such/file.jsonl"),
        ("rollout.max_tokens=100000", "student", "lower rollout.max_tokens"),
    ],
)
def test_what_is_wrong_is_named_and_the_rest_is_still_looked_at(config, override, topic, says):
    found = run_check(config(override))
    assert not found.all_well
    assert any(row.level == "wrong" and says in row.text for row in found.of(topic)), found.rows
    assert not found.of("a dry step")
    assert found.of("folder")


def test_a_reference_that_its_verifier_refuses_is_a_note(config, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a b", "reference": 3, "id": "good"}, {"prompt": "b a", "reference": "a dog", "id": "bad"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run_check(config(f"data.source={file}", "data.limit=2", "data.offset=0"), dry=False)
    assert found.all_well
    (note,) = [row for row in found.of("verifier") if row.level == "note"]
    assert "1 of 2" in note.text
    assert "'bad'" in note.text
