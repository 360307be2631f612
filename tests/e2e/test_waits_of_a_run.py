"""A run whose verifier throttles it and then refuses its key: it waits, and its metrics are those without that."""

from pathlib import Path

import pytest
from held_tenant import KEY, OTHER_KEY, Hold, write_keys
from servers import serving
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import TracesConfig, TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.services import outages, throttling
from vold_trainer.training import loop
from vold_trainer.training.train import run_train

SMALL = (
    *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "steps=3", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "verifier.api_key_env=RUN_KEY"),
)


@pytest.mark.slow
def test_a_throttled_run_that_loses_its_key_for_a_while_changes_no_metric(
    tmp_path, pocket_teacher, verifier, monkeypatch, capfd
):
    def config(name: str, url: str) -> TrainConfig:
        urls = (f"teacher.url={pocket_teacher.grpc}", f"verifier.url={url}")
        return load(TrainConfig, Path("pocket:vold"), [f"out={tmp_path / name}", *urls, *SMALL])

    monkeypatch.setenv("RUN_KEY", KEY)
    run_train(config("undisturbed", verifier.grpc))
    keys = tmp_path / "keys.yaml"
    write_keys(keys, KEY)
    with serving("verifier", "--workers", "1", "--api-keys", str(keys)) as server:
        hold = Hold(server.grpc)
        states = []

        def set_key(key: str) -> None:
            write_keys(keys, key, process=server.process)

        before = {1: hold.begin, 2: lambda: set_key(OTHER_KEY)}
        step, print_notice, update = loop.Loop._step, throttling.print_notice, outages._OutageNotice.update

        def acting_step(self, number):
            before.get(number, lambda: None)()
            monkeypatch.setattr(throttling, "print_notice", lambda text: noticed(self, text))
            return step(self, number)

        def noticed(run, text):
            print_notice(text)
            states.append(dict(run.scorer.service_states())["verifier"])
            hold.end()

        def updated(self, reason):
            update(self, reason)
            set_key(KEY)

        monkeypatch.setattr(loop.Loop, "_step", acting_step)
        monkeypatch.setattr(outages._OutageNotice, "update", updated)
        run_train(config("disturbed", server.grpc))
    rows, expected = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("disturbed", "undisturbed"))
    for row, other in zip(rows, expected, strict=True):
        for key in ("loss", "reward/mean", "teacher/k2", "grad_norm"):
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), (row["step"], key)
        assert row["missing/teacher"] == row["missing/verifier"] == 0
    spans = {(span["step"], span["lane"]) for span in read_json_lines(tmp_path / "disturbed" / "timeline.jsonl")}
    assert spans >= {(2, "throttled"), (3, "outage")}
    stderr = " ".join(capfd.readouterr().err.split())
    assert f"verifier {server.grpc} throttles calls" in stderr
    assert stderr.count("1 requests under way") == 1  # the service's own sentence
    assert "1 in flight · throttled, next try in" in states[0]
    assert f"verifier {server.grpc} refuses the API key for 0 s: the API key is not one of this service's" in stderr
    assert "environment variable RUN_KEY (verifier.api_key_env), which is set" in stderr
    assert f"verifier {server.grpc} answers again" in stderr
    assert KEY not in stderr


@pytest.mark.slow
def test_traces_of_a_throttled_verifier_are_all_written(tmp_path, pocket_teacher, monkeypatch):
    def config(name: str, *overrides: str) -> TracesConfig:
        settings = (f"out={tmp_path / name}", f"teacher.url={pocket_teacher.grpc}", "data.limit=4", *overrides)
        return load(TracesConfig, Path("pocket:traces"), settings)

    monkeypatch.setenv("RUN_KEY", KEY)
    keys, notices = tmp_path / "keys.yaml", []
    write_keys(keys, KEY)
    with serving("verifier", "--workers", "1", "--api-keys", str(keys)) as server, Hold(server.grpc) as hold:
        monkeypatch.setattr(throttling, "print_notice", lambda text: (notices.append(text), hold.end()))
        verified = f"verifier.url={server.grpc}", "verifier.api_key_env=RUN_KEY"
        summary = run_traces(config("traces.jsonl", *verified))
    assert len(notices) == 1
    assert set(summary.dropped) <= {"wrong", "not finished"}
    assert summary.written == len(read_json_lines(tmp_path / "traces.jsonl")) > 0
