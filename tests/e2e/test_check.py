"""`vold check`: valid configs pass, each error is reported, and no run is written."""

import json
from pathlib import Path

import pytest
from PIL import Image
from verifier_server import running
from vold_trainer.checking import run_check
from vold_trainer.config import TrainConfig, load
from vold_trainer.lock import holding


@pytest.fixture
def config(tmp_path, pocket_teacher, verifier):
    def make(*overrides: str) -> TrainConfig:
        own = [f"out={tmp_path / 'run'}", "student.path=pocket:student", "data.limit=200"]
        urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
        return load(TrainConfig, Path("pocket:vold"), [*own, *urls, *overrides])

    return make


def test_a_valid_config_passes_a_dry_step_and_leaves_no_files(config, tmp_path):
    report = run_check(config())
    assert report.passed, report.findings
    topics = {"data", "student", "memory", "teacher", "verifier", "folder", "a dry step"}
    assert {finding.topic for finding in report.findings} == topics
    (dry,) = report.of_topic("a dry step")
    assert "loss" in dry.text
    assert not (tmp_path / "run").exists()
    assert any("50 of 50 references" in finding.text for finding in report.of_topic("verifier"))


@pytest.mark.parametrize(
    ("override", "topic", "message"),
    [
        ("teacher.url=grpc://127.0.0.1:9", "teacher", "127.0.0.1:9"),
        ("teacher.timeout=.inf", "teacher", "timeout is inf"),
        ("verifier.name=nobody", "verifier", "verifier.name is 'nobody'"),
        ("student.path=/no/such/folder", "student", "/no/such/folder"),
        ("data.source=/no/such/file.jsonl", "data", "/no/such/file.jsonl"),
        ('objective={"name": "gkd", "traces": "/no/traces"}', "traces", "objective.traces '/no/traces' does not exist"),
        ("verifier.parameters={precent: 1}", "verifier", "verifier.parameters.precent: verifier 'numeric' has no"),
        ("rollout.max_tokens=100000", "student", "Lower rollout.max_tokens"),
    ],
)
def test_an_error_is_reported_and_the_other_topics_are_still_checked(config, override, topic, message):
    report = run_check(config(override))
    assert not report.passed
    assert any(f.level == "error" and message in f.text for f in report.of_topic(topic)), report.findings
    assert not report.of_topic("a dry step")
    assert report.of_topic("folder")


def test_a_student_that_writes_what_the_teacher_never_would_is_warned_of(config):
    """The base student has not seen this teacher's traces."""
    (warning,) = [f for f in run_check(config()).of_topic("teacher") if f.level == "warning"]
    assert "nats a token less likely to the teacher" in warning.text
    assert "vold traces, vold sft" in warning.text
    alike = run_check(config("student.path=pocket:teacher", "student.freeze=[]"))
    assert not [f for f in alike.of_topic("teacher") if f.level == "warning"]
    alone = run_check(config("objective={name: grpo}"))
    assert not [f for f in alone.of_topic("teacher") if f.level == "warning"]


def test_a_folder_in_use_is_reported(config):
    made = config("student.path=/no/such/folder")
    with holding(made.out, "run"):
        report = run_check(made, dry=False)
    assert any("is in use by process" in finding.text for finding in report.of_topic("folder"))


def test_a_reference_that_its_verifier_rejects_is_a_warning(config, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a b", "reference": 3, "id": "good"}, {"prompt": "b a", "reference": "a dog", "id": "bad"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run_check(config(f"data.source={file}", "data.limit=2", "data.offset=0"), dry=False)
    assert report.passed
    (warning,) = [finding for finding in report.of_topic("verifier") if finding.level == "warning"]
    assert "1 of 2" in warning.text
    assert f"{file}:2: row 'bad', reference 'a dog': INVALID_ARGUMENT: reference: the reference" in warning.text


@pytest.mark.parametrize(("skip_broken", "level"), [("null", "error"), ("true", "warning")])
def test_a_row_that_the_student_refuses_is_named_and_the_other_topics_are_checked(config, tmp_path, skip_broken, level):
    Image.new("RGB", (3000, 3)).save(tmp_path / "thin.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "square.png")
    file = tmp_path / "rows.jsonl"
    pictures = ["square.png", "thin.png", "square.png"]
    rows = [{"prompt": "a", "twin": "a", "reference": "3", "image": name} for name in pictures]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data.limit=null", "data.offset=0", "rollout.prompts=2", f"data.skip_broken={skip_broken}")
    report = run_check(config(f"data.source={file}", *own), dry=False)
    (fault,) = [finding for finding in report.findings if "at fault" in finding.text]
    assert (fault.topic, fault.level) == ("data", level)
    assert (
        f"{file}:2: the student's processor refuses its images (3000 x 3 pixels): absolute aspect ratio" in fault.text
    )
    assert report.passed == (level == "warning")
    for topic in ("student", "memory", "teacher", "verifier", "folder"):
        assert report.of_topic(topic)


@pytest.mark.parametrize(("skip_broken", "level"), [("null", "error"), ("true", "warning")])
def test_a_prompt_longer_than_the_student_is_named_as_a_run_names_it(config, tmp_path, skip_broken, level):
    """The pocket student has 512 positions."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": prompt, "reference": "2"} for prompt in ("1+1", "1+1+" * 200, "1+1")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data.limit=null", "data.offset=0", "rollout.prompts=2", f"data.skip_broken={skip_broken}")
    report = run_check(config(f"data.source={file}", *own), dry=False)
    (finding,) = [finding for finding in report.findings if finding.level != "ok"]
    assert (finding.topic, finding.level) == ("student", level)
    assert (
        f"{file}:2: its prompt has 808 tokens, and with rollout.max_tokens 80 that is more than the 512" in finding.text
    )
    assert ("Lower rollout.max_tokens, drop them, or set" in finding.text) == (level == "error")


@pytest.mark.slow
def test_a_dry_step_says_why_scores_are_missing(config):
    """The plugin's verifier "broken" fails on every item, which shows when it verifies."""
    with running("--workers", "1") as server:
        report = run_check(config(f"verifier.url={server.grpc_url}", "verifier.name=broken"))
    assert not [finding for finding in report.of_topic("verifier") if finding.level == "error"]
    (dry,) = report.of_topic("a dry step")
    assert dry.level == "error"
    assert "8 scores are missing: 8 verifier: Internal (row '" in dry.text
    assert "verifier broken failed with RuntimeError on this item" in dry.text


@pytest.mark.slow
@pytest.mark.parametrize(("skip_broken", "level"), [("null", "error"), ("true", "warning")])
def test_a_dry_step_names_the_row_that_a_service_refuses(config, tmp_path, caplog, skip_broken, level):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a b", "reference": 3, "id": "good"}, {"prompt": "b a", "reference": "a dog", "id": "bad"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data.limit=null", "data.offset=0", "rollout.prompts=2", f"data.skip_broken={skip_broken}")
    report = run_check(config(f"data.source={file}", *own))
    (dry,) = report.of_topic("a dry step")
    assert dry.level == level
    named = f"{file}:2: row 'bad': INVALID_ARGUMENT: reference: the reference is not a number: 'a dog'"
    assert named in (dry.text if level == "error" else caplog.text)
    assert report.passed == (level == "warning")
