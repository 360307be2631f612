"""Inputs that attack the verifiers, each with the right verdict and the reason: cases/verifier_adversarial.jsonl.

`completion` is a text, or a list of [text, number of repetitions]. `correct` is null if the item must have an error.
`rule` is the anti-hacking rule that the verdict must name. `heavy` rows could stop a process, so a real server verifies
them.
"""

import contextlib
import json
from typing import Any

import psutil
import pytest
from paths import CASES
from verifier_server import item as make_item
from verifier_server import running
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_verifier import registry
from vold_verifier.engine import worker
from vold_verifier.sandbox.tripwire import Tripwire

PATH = CASES / "verifier_adversarial.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
VERIFIERS = registry.load()
MEMORY_LIMIT = 512 * 2**20


def to_item(row: dict[str, Any]) -> verifier_pb2.VerifyItem:
    completion = row["completion"]
    if isinstance(completion, list):
        completion = "".join(text * times for text, times in completion)
    item = make_item(row["verifier"], completion, row["reference"], row["id"], **row.get("parameters", {}))
    item.prompt = row.get("prompt", "")
    return item


def is_expected(row: dict[str, Any], result: verifier_pb2.VerifyResult) -> bool:
    if row["correct"] is None:
        return bool(result.error.code) and not result.HasField("reward")
    if not result.HasField("correct"):
        # An item past its time limit has no verdict, and so no reward.
        return bool(row.get("heavy")) and result.error.code == status_pb2.DEADLINE_EXCEEDED and not row["correct"]
    return result.correct == row["correct"] and (not row.get("rule") or result.rule == row["rule"])


def test_there_are_at_least_150_cases():
    assert len(ROWS) >= 150
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert all(row["why"] for row in ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.get("heavy")], ids=lambda row: row["id"])
def test_the_verdict_is_the_expected_one(row):
    result, reusable = worker.verify_within_limits(to_item(row), VERIFIERS, worker.Timer(5.0), Tripwire())
    assert is_expected(row, result), f"{row['why']}: {result.reason} {result.error.message} [{result.rule}]"
    assert reusable


@pytest.mark.timeout(240)
def test_heavy_items_change_no_other_result():
    heavy = [row for row in ROWS if row.get("heavy")]
    innocent = make_item("math", r"\boxed{\frac{2}{4}}", "0.5", "innocent")
    with running(
        "--workers", "2", "--time-limit", "1", "--hard-time-limit", "60", "--max-completion-chars", "2000000"
    ) as server:
        workers = {process.pid for process in server.descendants()}
        items = [item for row in heavy for item in (to_item(row), innocent)]
        results = server.verify(*items, timeout=200)
        for row, result in zip(heavy, results[::2], strict=True):
            assert is_expected(row, result), f"{row['id']} {row['why']}: {result.reason} {result.error.message}"
        assert all(result.correct for result in results[1::2])
        assert workers
        for process in server.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):  # of a worker that has ended since
                assert process.memory_info().rss < MEMORY_LIMIT
        assert psutil.pid_exists(server.process.pid)
