"""`vold eval` with the pocket student and a real verifier: continuing after a kill, and a benchmark's own columns."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner
from vold_trainer.cli import app
from vold_trainer.config import EvalConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.evaluation import run_eval
from vold_trainer.files import read_json_lines

PROBLEMS, SAMPLES = 20, 3


def settings(out, verifier, *more):
    sets = [f"data.{number}.limit={PROBLEMS}" for number in (0, 1)]
    return [f"out={out}", f"verifier.url={verifier.grpc}", f"sampling.n={SAMPLES}", "batch=12", *sets, *more]


def evaluate(out, verifier, *more, fresh=False):
    return run_eval(load(EvalConfig, Path("pocket:eval"), settings(out, verifier, *more)), fresh=fresh)


def lines(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, verifier):
    """The folder of an uninterrupted evaluation."""
    out = tmp_path_factory.mktemp("whole")
    evaluate(out, verifier)
    return out


def read(out):
    return json.loads((out / "eval.json").read_text())


def answers(out):
    """Every completion by set, problem and number."""
    rows = read_json_lines(out / "answers.jsonl")[1:]
    return {(row["set"], row["key"], row["sample"]): row["completion"] for row in rows}


def test_sampled_metrics_agree_with_the_verdicts(uninterrupted, verifier):
    from vold_client import Item, VerifierClient

    completions = answers(uninterrupted)
    assert len(completions) == 2 * PROBLEMS * (1 + SAMPLES)
    written = read(uninterrupted)
    from vold_trainer.pocket.problems import sample_problems

    references = {problem.id: problem.answer for problem in sample_problems("test", PROBLEMS)}
    keys = [key for key in completions if key[0] == "text"]
    items = [Item("numeric", completions[key], references[key[1].removesuffix("-text")]) for key in keys]
    with VerifierClient(verifier.grpc) as client:
        right = {key: verdict.correct for key, verdict in zip(keys, client.verify(items), strict=True)}
    text = written["text"]
    assert text["n"] == text["problems"] == PROBLEMS
    assert text["accuracy"] == pytest.approx(sum(c for key, c in right.items() if key[2] == -1) / PROBLEMS)
    by_problem = [[right["text", f"{name}-text", sample] for sample in range(SAMPLES)] for name in references]
    assert text["sampled"]["mean@3"]["value"] == pytest.approx(sum(map(sum, by_problem)) / PROBLEMS / SAMPLES)
    assert text["sampled"]["pass@3"]["value"] == pytest.approx(sum(map(any, by_problem)) / PROBLEMS)
    distinct = {completions["text", f"{name}-text", sample] for name in references for sample in range(SAMPLES)}
    assert len(distinct) > PROBLEMS  # the samples of a problem differ
    assert written["errors"] == 0
    assert {sample["modality"] for sample in read_json_lines(uninterrupted / "eval_samples.jsonl")} == {"text", "image"}


@pytest.mark.slow
def test_a_killed_and_continued_evaluation_has_the_same_results(tmp_path, uninterrupted, verifier):
    command = [sys.executable, "-m", "vold_trainer", "eval", "pocket:eval", *settings(tmp_path, verifier)]
    store, all_lines = tmp_path / "answers.jsonl", 1 + 2 * PROBLEMS * (1 + SAMPLES)
    with programs.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while lines(store) < 30:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    content = store.read_bytes()
    assert 30 <= content.count(b"\n") < all_lines
    assert not (tmp_path / "eval.json").exists()
    os.truncate(store, len(content) - 7)  # as if the last write had reached the disk in part

    evaluate(tmp_path, verifier)
    assert read(tmp_path) == read(uninterrupted)
    assert answers(tmp_path) == answers(uninterrupted)
    assert store.read_bytes().startswith(content[:-200])  # stored answers were reused, not rewritten
    samples = (tmp_path / "eval_samples.jsonl").read_text()
    assert samples == (uninterrupted / "eval_samples.jsonl").read_text()


def test_stored_answers_are_verified_again_but_not_generated_again(uninterrupted, verifier):
    before = (uninterrupted / "answers.jsonl").read_bytes()
    lenient = evaluate(uninterrupted, verifier, "verifier.parameters={absolute_tolerance: 1000000}")
    assert (uninterrupted / "answers.jsonl").read_bytes() == before
    assert lenient["text"].accuracy > read(uninterrupted)["image"]["accuracy"]
    assert lenient["text"].accuracy > 0.9
    evaluate(uninterrupted, verifier)


def test_answers_of_another_student_are_refused(tmp_path, verifier):
    few = ["data.0.limit=4", "data.1.limit=4", "sampling.n=0"]
    evaluate(tmp_path, verifier, *few)
    other = "student.path=pocket:teacher"
    text = "data=[{source: pocket, split: test, modality: text, limit: 4}]"
    with pytest.raises(UsageError, match=r"holds answers with student weights .*--fresh"):
        evaluate(tmp_path, verifier, "sampling.n=0", other, text)
    with pytest.raises(UsageError, match="to another prompt"):
        evaluate(tmp_path, verifier, *few, "data.0.seed=1")


def test_a_benchmark_in_its_own_columns_through_the_command_line(tmp_path, verifier):
    picture = Image.new("RGB", (56, 28), "white")
    picture.save(tmp_path / "1.png")
    stored = {"bytes": (tmp_path / "1.png").read_bytes(), "path": "1.png"}
    rows = [
        {"id": seed, "question": "Is it even? (A) yes (B) no", "decoded_image": stored, "ground_truth": "A",
         "answer_type": "multiple choice", "subject": "arithmetic", "knowledge_level": "high school"}
        for seed in ("1", "2")
    ]  # fmt: skip
    for variant in (1, 2):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"sample_variant{variant}.parquet")
    problem = {"images": ["1.png"], "problem": "<image>Find x.", "answer": "4"}
    broken = {"images": [], "problem": "<image>Find x.", "answer": "4"}
    (tmp_path / "geometry.jsonl").write_text(f"{json.dumps(problem)}\n{json.dumps(broken)}\n")
    unverified = {"prompt": "1+1=?", "reference": "a zebra", "verifier": "choice"}
    (tmp_path / "unverified.jsonl").write_text(json.dumps(unverified))
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"""
out: {tmp_path / "run"}
student: {{path: "pocket:student"}}
verifier: {{url: "{verifier.grpc}"}}
max_tokens: 12
data:
  - {{source: "{tmp_path}/sample_variant*.parquet", adapter: dynamath}}
  - {{source: "{tmp_path}/geometry.jsonl", adapter: geometry3k, wording: own, skip_broken: true}}
  - {{source: "{tmp_path}/unverified.jsonl"}}
"""
    )
    result = CliRunner().invoke(app, ["eval", str(config), "--categories", "sampling.n=2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "worst_case" in result.output
    assert "level: high school" in result.output
    written = json.loads((tmp_path / "run" / "eval.json").read_text())
    found = written["dynamath"]
    assert (found["problems"], found["aggregate"]["worst_case"]["n"], found["errors"]) == (4, 2, 0)
    assert set(found["sampled"]["aggregate"]) == {"average", "worst_case"}
    assert written["geometry3k"]["problems"] == 1
    unverified = written["unverified"]
    assert (unverified["errors"], unverified["n"], unverified["accuracy"], written["errors"]) == (3, 0, None, 3)
    keys = {row["key"] for row in read_json_lines(tmp_path / "run" / "answers.jsonl")[1:]}
    assert {"1", "1#2", "2", "2#2"} < keys
    sample = read_json_lines(tmp_path / "run" / "eval_samples.jsonl")[0]
    assert sample["image"].startswith("data:image/png;base64,")
