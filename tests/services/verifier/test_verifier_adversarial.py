"""Inputs made to fool or to stop the verifiers, each with the right verdict and why: cases/verifier_adversarial.jsonl.

`completion` is a text, or a list of [text, how often]. `correct` is null where the item has to be an error. `rule` is
the anti-hacking rule that has to be named. `heavy` rows could stop a process: they go through a real server.
"""

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


def as_item(row: dict[str, Any]) -> verifier_pb2.VerifyItem:
    completion = row["completion"]
    if isinstance(completion, list):
        completion = "".join(text * times for text, times in completion)
    item = make_item(row["verifier"], completion, row["reference"], row["id"], **row.get("parameters", {}))
    item.prompt = row.get("prompt", "")
    return item


def holds(row: dict[str, Any], result: verifier_pb2.VerifyResult) -> bool:
    if row["correct"] is None:
        return bool(result.error.code) and not result.HasField("reward")
    if not result.HasField("correct"):
        # Out of time is no verdict, and so nothing is paid.
        return bool(row.get("heavy")) and result.error.code == status_pb2.DEADLINE_EXCEEDED and not row["correct"]
    return result.correct == row["correct"] and (not row.get("rule") or result.rule == row["rule"])


def test_the_list_is_as_long_as_promised():
    assert len(ROWS) >= 150
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert all(row["why"] for row in ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.get("heavy")], ids=lambda row: row["id"])
def test_nothing_is_paid_that_is_no_answer(row):
    result, healthy = worker.check_within(as_item(row), VERIFIERS, worker.Timer(5.0), Tripwire())
    assert holds(row, result), f"{row['why']}: {result.reason} {result.error.message} [{result.rule}]"
    assert healthy


@pytest.mark.timeout(240)
def test_what_could_stop_a_process_holds_nobody_up():
    heavy = [row for row in ROWS if row.get("heavy")]
    innocent = make_item("math", r"\boxed{\frac{2}{4}}", "0.5", "innocent")
    with running(
        "--workers", "2", "--time-limit", "1", "--hard-time-limit", "60", "--max-completion-chars", "2000000"
    ) as server:
        workers = {process.pid for process in server.descendants()}
        items = [item for row in heavy for item in (as_item(row), innocent)]
        results = server.verify(*items, timeout=200)
        for row, result in zip(heavy, results[::2], strict=True):
            assert holds(row, result), f"{row['id']} {row['why']}: {result.reason} {result.error.message}"
        assert all(result.correct for result in results[1::2])
        assert workers
        for process in server.descendants():
            assert process.memory_info().rss < MEMORY_LIMIT
        assert psutil.pid_exists(server.process.pid)
