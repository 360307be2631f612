"""`vold verify` as a user runs it: a file in, verdicts out, broken lines named, no other line lost."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import programs
import pytest
from verifier_server import running
from vold_trainer.config import VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.verification import run_verify

RIGHT = {"id": "r", "completion": r"so \boxed{1/2}", "reference": "0.5"}
KEYS = ["id", "reward", "correct", "extracted", "reason", "error", "seconds"]


@pytest.fixture(scope="module")
def server():
    with running("--workers", "2", "--time-limit", "0.5") as server:
        yield server


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vold_trainer", "verify", *map(str, arguments)]


def run(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return programs.run(command(*arguments), stdin_text=stdin, timeout=120, env={**os.environ, "COLUMNS": "200"})


def write(path, rows):
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_file_is_verified_in_order_by_a_local_service(tmp_path):
    options = {"A": "Paris", "B": "Rome"}
    rows = [
        RIGHT,
        {"id": 2, "completion": r"\boxed{3}", "reference": 4},
        {"id": "by text", "completion": "Rome", "reference": "B", "verifier": "choice", "options": options},
        {
            "id": "listed",
            "completion": "Rome",
            "reference": "B",
            "verifier": "choice",
            "options": [{"A": "Paris"}, {"B": "Rome"}],
        },
        {"id": "texts", "completion": r"\boxed{4}", "reference": "B", "verifier": "choice", "options": [3, 4]},
        {
            "id": "near",
            "completion": "3.15",
            "reference": "3.14",
            "verifier": "numeric",
            "params": {"relative_tolerance": 0.01},
        },
        {"id": "boxed", "completion": "4", "answer": 4, "parameters": {"accept": ["boxed"]}},
        {
            "id": "of a data set",
            "completion": "4",
            "reference": 4.0,
            "parameters": '{"accept": ["boxed"]}',
            "messages": [{"role": "user", "content": "2 + 2?"}],
            "category": "sum",
        },
        {"id": "prompt", "completion": r"\boxed{4}", "reference": "4", "prompt": "Think.<think>"},
        {
            "completion": r"\boxed{7}",
            "reference": "7",
            "prompt": None,
            "options": None,
            "params": None,
            "parameters": None,
        },
    ]
    out = tmp_path / "out.jsonl"
    done = run(write(tmp_path / "in.jsonl", rows), "--verifier", "math", "-o", out)
    assert done.returncode == 0, done.stderr
    verdicts = read(out.read_text())
    assert all(list(verdict) == KEYS for verdict in verdicts)
    assert [verdict["id"] for verdict in verdicts] == [
        *("r", 2, "by text", "listed", "texts", "near", "boxed", "of a data set", "prompt", 10)
    ]
    right = [True, False, True, True, True, True, False, False, False, True]
    assert [verdict["reward"] for verdict in verdicts] == list(map(float, right))
    assert [verdict["correct"] for verdict in verdicts] == right
    assert verdicts[0]["extracted"] == "1/2"
    assert "boxed" in verdicts[6]["reason"]
    assert "boxed" in verdicts[7]["reason"]
    assert "never ends" in verdicts[8]["reason"]
    assert {verdict["error"] for verdict in verdicts} == {None}
    assert done.stdout == ""
    for shown in ("math", "choice", "numeric", "accuracy", "10 lines"):
        assert shown in done.stderr


BROKEN = {
    "no JSON": ("{", "not JSON ("),
    "no object": ("[1]", "a list, not an object: '[1]'"),
    "no completion": ({"id": "x", "reference": "1"}, "field 'completion' is None: give the text of the completion"),
    "completion no text": ({"id": "x", "completion": 3, "reference": "1"}, "field 'completion' is 3: give the text"),
    "unknown verifier": ({**RIGHT, "id": "x", "verifier": "maths"}, "did you mean 'math'"),
    "unknown parameter": ({**RIGHT, "id": "x", "params": {"acept": ["boxed"]}}, "parameters.acept"),
    "params no object": ({**RIGHT, "id": "x", "params": [1]}, "field 'parameters' is [1]: give an object"),
    "parameters no JSON": ({**RIGHT, "id": "x", "parameters": "{"}, "field 'parameters' is '{': not JSON ("),
    "two names": ({**RIGHT, "id": "x", "params": {}, "parameters": {}}, "parameters and params are the same field"),
    "two references": ({**RIGHT, "id": "x", "answer": "1"}, "reference and answer are the same field: keep one"),
    "unknown field": ({**RIGHT, "id": "x", "refrence": "1"}, "unknown field 'refrence'; did you mean 'reference'?"),
    "unread field": ({**RIGHT, "id": "x", "score": 1}, "unknown field 'score'; the fields are id, completion"),
    "messages": (
        {**RIGHT, "id": "x", "messages": [{"role": "me", "content": "a"}]},
        "field 'messages[0].role' is 'me'",
    ),
    "no number": (
        '{"id": "x", "completion": "1", "reference": NaN}',
        "field 'reference' is nan: give the reference answer as text or a number",
    ),
    "id no number": (
        '{"id": Infinity, "completion": "1", "reference": "1"}',
        "field 'id' is inf: give a text or a number",
    ),
    "id half a character": ('{"id": "\\udfff", "completion": "1", "reference": "1"}', "half of a character"),
    "half a character deep inside": (
        '{"id": "x", "completion": "1", "reference": "1", "parameters": {"a": ["\\ud800"]}}',
        "its text holds '\\ud800', which is half of a character: take it out",
    ),
    "options no texts": (
        {**RIGHT, "id": "x", "verifier": "choice", "options": ["Paris", None]},
        "field 'options' has None for 'B'",
    ),
    "options mixed": ({**RIGHT, "id": "x", "options": [{"A": "Paris"}, "Rome"]}, "field 'options' holds 'Rome'"),
    "too many options": ({**RIGHT, "id": "x", "options": ["x"] * 27}, "over the limit of 26"),
    "options twice": ({**RIGHT, "id": "x", "options": [{"A": "1"}, {"A": "2"}]}, "names 'A' twice"),
    "half a character": ('{"id": "x", "completion": "\\ud800", "reference": "1"}', "half of a character"),
    "key twice": (
        '{"id": "x", "completion": "1", "completion": "2"}',
        "not JSON (the key 'completion' twice in an object)",
    ),
    "not UTF-8": (b'{"id": "\xb5"}', "not UTF-8 (byte 0xb5 at position 8): save the file as UTF-8"),
    "deep": ("[" * 100_000, "not JSON (more than 100 levels"),
    "bad reference": ({**RIGHT, "id": "x", "reference": ""}, "the reference is empty"),
}


def test_a_broken_line_is_named_and_affects_no_other(server, tmp_path):
    rows = [RIGHT]
    for broken, _ in BROKEN.values():
        rows += [broken, RIGHT]
    done = run(write(tmp_path / "in.jsonl", rows), "--url", server.url, "-o", tmp_path / "out.jsonl")
    assert done.returncode == 1
    verdicts = read((tmp_path / "out.jsonl").read_text())
    assert [verdict["reward"] for verdict in verdicts] == [1.0, *[None, 1.0] * len(BROKEN)]
    for index, (_, message) in enumerate(BROKEN.values()):
        verdict, number = verdicts[2 * index + 1], 2 * index + 2
        assert verdict["error"].startswith(f"{tmp_path / 'in.jsonl'}:{number}: ")
        assert message in verdict["error"]
        assert "items[" not in verdict["error"]
        assert verdict["correct"] is None
    assert "in.jsonl:2: not JSON (" in done.stderr
    assert f"{len(BROKEN) - 10} more" in done.stderr


def test_an_unknown_verifier_is_named(server, tmp_path):
    done = run(write(tmp_path / "in.jsonl", [RIGHT, {**RIGHT, "verifier": "nosuch"}]), "--url", server.url)
    assert done.returncode == 1
    assert "in.jsonl:2: NOT_FOUND: no verifier is called 'nosuch'" in done.stderr
    assert [row["reward"] for row in read(done.stdout)] == [1.0, None]
    done = run(tmp_path / "in.jsonl", "--url", server.url, "--verifier", "nosuch")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--verifier is 'nosuch': no verifier is called 'nosuch'" in done.stderr


def test_an_exceeded_limit_is_an_error_without_reward_and_no_broken_line(server):
    rows = [{**RIGHT, "verifier": "spin"}, {**RIGHT, "verifier": "crash"}, RIGHT]
    done = run("-", "--url", server.url, stdin="".join(json.dumps(row) + "\n\n" for row in rows))
    assert done.returncode == 0, done.stderr
    verdicts = read(done.stdout)
    assert [verdict["reward"] for verdict in verdicts] == [None, None, 1.0]
    assert verdicts[0]["error"].startswith("line 1: DEADLINE_EXCEEDED")
    assert verdicts[1]["error"].startswith("line 3: INTERNAL")
    assert "no verdict: 1 DeadlineExceeded (row 'r': line 1: DEADLINE_EXCEEDED: " in done.stderr
    assert "no verdict: 1 Internal (row 'r': line 3: INTERNAL: " in done.stderr


def test_many_lines_come_out_in_order(server, tmp_path):
    rows = [{"id": n, "completion": rf"\boxed{{{n}}}", "reference": str(n - n % 3)} for n in range(3000)]
    done = run(write(tmp_path / "in.jsonl", rows), "--url", server.url)
    assert [(v["id"], v["correct"]) for v in read(done.stdout)] == [(n, n % 3 == 0) for n in range(3000)]


def test_explain_prints_one_verdict(server, tmp_path):
    rows = [{**RIGHT, "id": n} for n in range(5)] + [{**RIGHT, "id": "wrong", "reference": "7"}]
    file = write(tmp_path / "in.jsonl", ["{", *rows])
    done = run(file, "--url", server.url, "--explain", "wrong")
    assert done.returncode == 0, done.stderr
    for shown in ("wrong", "math", "different numbers", "1/2", "7", "7"):
        assert shown in done.stdout
    missing = run(file, "--url", server.url, "--explain", "nobody")
    assert missing.returncode == 1
    assert "'nobody'" in missing.stderr


def test_files_that_cannot_be_used_are_named(server, tmp_path):
    file = write(tmp_path / "in.jsonl", [RIGHT])
    for arguments, message in (
        ([tmp_path / "nothing.jsonl"], "nothing.jsonl"),
        ([file, "-o", file], "is the input"),
        ([file, "-o", tmp_path / "no" / "out.jsonl"], "cannot write"),
    ):
        done = run(*arguments, "--url", server.url)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert json.loads(file.read_text()) == RIGHT


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("rows.parquet", b"PAR1" + bytes(40), "Parquet"),
        ("rows.jsonl.gz", gzip.compress(b"{}", mtime=0), "compressed by gzip"),
        ("rows.json", b'[{"id": 1,\n"completion": "1"}]', "one array of JSON"),
    ],
    ids=["parquet", "gzip", "array"],
)
def test_a_file_of_another_form_is_told_as_such(tmp_path, name, content, form):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name}' is {form}, and `vold verify` reads JSONL"):
        run_verify(str(tmp_path / name), str(tmp_path / "out.jsonl"), VerifierConfig(url="grpc://127.0.0.1:9"))
    assert not (tmp_path / "out.jsonl").exists()


def test_ctrl_c_leaves_the_verdicts_received(server, tmp_path):
    out = tmp_path / "out.jsonl"
    # Background jobs of a shell ignore SIGINT, and child processes inherit that.
    with_sigint = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", with_sigint, *command("-", "--url", server.url, "-o", out)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The input stays open: the command verifies the lines read so far and waits for more.
    for n in range(512):
        process.stdin.write(json.dumps({**RIGHT, "id": n}) + "\n")
    process.stdin.flush()
    while not (out.exists() and out.read_text().count("\n") == 512):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(30)  # before closing the input, which would end the command normally
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "first 512 lines" in stderr
    assert "Traceback" not in stderr
    assert [verdict["reward"] for verdict in read(out.read_text())] == [1.0] * 512
