"""Batches: equal items are judged once, verdicts are kept, and neither changes a verdict."""

import random
import re

import grpc
import httpx
import pytest
from verifier_server import Server, item, running
from vold_client import Item, VerifierClient
from vold_proto.v1 import status_pb2, verifier_pb2

ITEMS = [
    item("math", r"\boxed{18}", "18"),
    item("math", r"\boxed{x^2-1}", "(x-1)(x+1)"),
    item("math", r"\boxed{x^2+1}", "(x-1)(x+1)"),
    item("math", r"\boxed{2\sqrt{2}}", r"\sqrt{8}", accept=["boxed"]),
    item("math", "<think>never ends", "4"),
    item("math", r"\boxed{4}", ""),
    item("numeric", "3.15", "3.14", relative_tolerance=0.01),
    item("numeric", "3.15", "3.14"),
    item("numeric", "3.15", "3.14", relative_tolerance="much"),
    item("choice", "Rome", "B", options={"A": "Paris", "B": "Rome"}),
    item("choice", "Rome", "B", options={"B": "Paris", "A": "Rome"}),
    item("exact", "paris", "Paris", ignore_case=True),
    item("nothing", "1", "1"),
]


PLACE = re.compile(r"items\[\d+\]\.?")


@pytest.fixture(scope="module")
def server():
    with running("--workers", "2", "--time-limit", "0.5", "--recycle-after", "100000") as one:
        yield one


@pytest.fixture(scope="module")
def plain_server():
    with running("--workers", "1", "--cache-bytes", "0") as one:
        yield one


def counted(server: Server, name: str) -> float:
    found = re.findall(rf"^vold_verifier_{name}(?:\{{[^}}]*\}})? (\S+)$", httpx.get(f"{server.url}/metrics").text, re.M)
    return sum(map(float, found))


def judged(results: list[verifier_pb2.VerifyResult]) -> list[verifier_pb2.VerifyResult]:
    """Without what may differ between two times and two places."""
    for result in results:
        result.seconds, result.cached = 0, False
        if result.HasField("error"):
            result.error.field = PLACE.sub("", result.error.field)
            result.error.message = PLACE.sub("", result.error.message)
    return results


def named(items: list[verifier_pb2.VerifyItem]) -> list[verifier_pb2.VerifyItem]:
    copies = []
    for number, one in enumerate(items):
        copies.append(verifier_pb2.VerifyItem())
        copies[-1].CopyFrom(one)
        copies[-1].id = f"n{number}"
    return copies


def test_repetition_and_memory_change_no_verdict(server, plain_server):
    rng = random.Random(0)
    mixed = named([rng.choice(ITEMS) for _ in range(100)] + ITEMS)
    alone = judged([plain_server.verify(one)[0] for one in mixed])
    for kind in (plain_server, server, server):
        results = kind.verify(*mixed)
        for number, result in enumerate(results):
            assert result.error.field.startswith(f"items[{number}]." if result.error.field else "")
        assert judged(results) == alone


def test_an_item_is_judged_once_in_a_batch(server):
    slow = [item("sleep", "once", name=f"{n}", seconds=0.2) for n in range(50)]
    before = counted(server, "repeated_items_total")
    results = server.verify(*slow)
    assert len({result.extracted for result in results}) == 1
    assert [result.cached for result in results] == [False] + [True] * 49
    assert [result.id for result in results] == [str(n) for n in range(50)]
    assert counted(server, "repeated_items_total") == before + 49


def test_a_verdict_is_kept_and_an_error_is_not(server, tmp_path):
    hits, misses = counted(server, "cache_hits_total"), counted(server, "cache_misses_total")
    asked = [item("sleep", "kept", seconds=0.01), item("crash", str(tmp_path / "mark")), item("spin")]
    first, second = server.verify(*asked), server.verify(*asked)
    assert [one.cached for one in first] == [False] * 3
    assert [one.cached for one in second] == [True, True, False]
    assert [one.error.code for one in second] == [0, 0, status_pb2.DEADLINE_EXCEEDED]
    assert second[0].seconds == 0
    assert counted(server, "cache_hits_total") == hits + 2
    assert counted(server, "cache_misses_total") == misses + 4
    assert counted(server, "cache_bytes") > 0
    stream = list(server.stub.VerifyStream(iter([item("sleep", "kept", name="s", seconds=0.01)]), timeout=30))
    assert [(one.id, one.cached, one.reward) for one in stream] == [("s", True, 1.0)]
    body = {"items": [{"verifier": "sleep", "completion": "kept", "parameters": {"seconds": 0.01}}]}
    assert httpx.post(f"{server.url}/v1/verify", json=body).json()["results"][0]["cached"]
    with VerifierClient(server.url) as client:
        (verdict,) = client.verify([Item("sleep", "kept", "", parameters={"seconds": 0.01})])
    assert verdict.cached


def test_no_memory_where_none_is_given(plain_server):
    one = item("sleep", "kept", seconds=0.01)
    assert not plain_server.verify(one)[0].cached
    assert not plain_server.verify(one)[0].cached
    assert counted(plain_server, "cache_hits_total") == 0


def test_what_a_killed_call_had_found_is_kept(server):
    asked = [item("sleep", f"part {n}", seconds=0.1) for n in range(40)]
    with pytest.raises(grpc.RpcError):
        server.verify(*asked, timeout=0.6)
    assert any(one.cached for one in server.verify(*asked))
