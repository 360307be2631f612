"""Batches: equal items are verified once, verdicts are cached, and neither changes a verdict."""

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


FIELD_PREFIX = re.compile(r"items\[\d+\]\.?")


@pytest.fixture(scope="module")
def server():
    with running("--workers", "2", "--time-limit", "0.5", "--recycle-after", "100000") as server:
        yield server


@pytest.fixture(scope="module")
def plain_server():
    with running("--workers", "1", "--cache-bytes", "0") as server:
        yield server


def metric(server: Server, name: str) -> float:
    values = re.findall(
        rf"^vold_verifier_{name}(?:\{{[^}}]*\}})? (\S+)$", httpx.get(f"{server.url}/metrics").text, re.M
    )
    return sum(map(float, values))


def comparable(results: list[verifier_pb2.VerifyResult]) -> list[verifier_pb2.VerifyResult]:
    """Remove the values that may differ between two calls or two indices."""
    for result in results:
        result.seconds, result.cached = 0, False
        if result.HasField("error"):
            result.error.field = FIELD_PREFIX.sub("", result.error.field)
            result.error.message = FIELD_PREFIX.sub("", result.error.message)
    return results


def with_ids(items: list[verifier_pb2.VerifyItem]) -> list[verifier_pb2.VerifyItem]:
    copies = []
    for number, original in enumerate(items):
        copies.append(verifier_pb2.VerifyItem())
        copies[-1].CopyFrom(original)
        copies[-1].id = f"n{number}"
    return copies


@pytest.mark.slow
def test_repetition_and_the_cache_change_no_verdict(server, plain_server):
    rng = random.Random(0)
    mixed = with_ids([rng.choice(ITEMS) for _ in range(100)] + ITEMS)
    alone = comparable([plain_server.verify(each)[0] for each in mixed])
    for service in (plain_server, server, server):
        results = service.verify(*mixed)
        for number, result in enumerate(results):
            assert result.error.field.startswith(f"items[{number}]." if result.error.field else "")
        assert comparable(results) == alone


def test_an_item_is_verified_once_in_a_batch(server):
    slow = [item("sleep", "once", name=f"{n}", seconds=0.2) for n in range(50)]
    before = metric(server, "repeated_items_total")
    results = server.verify(*slow)
    assert len({result.extracted for result in results}) == 1
    assert [result.cached for result in results] == [False] + [True] * 49
    assert [result.id for result in results] == [str(n) for n in range(50)]
    assert metric(server, "repeated_items_total") == before + 49


def test_a_verdict_is_cached_and_an_error_is_not(server, tmp_path):
    hits, misses = metric(server, "cache_hits_total"), metric(server, "cache_misses_total")
    items = [item("sleep", "kept", seconds=0.01), item("crash", str(tmp_path / "mark")), item("spin")]
    first, second = server.verify(*items), server.verify(*items)
    assert [result.cached for result in first] == [False] * 3
    assert [result.cached for result in second] == [True, True, False]
    assert [result.error.code for result in second] == [0, 0, status_pb2.DEADLINE_EXCEEDED]
    assert second[0].seconds == 0
    assert metric(server, "cache_hits_total") == hits + 2
    assert metric(server, "cache_misses_total") == misses + 4
    assert metric(server, "cache_bytes") > 0
    stream = list(server.stub.VerifyStream(iter([item("sleep", "kept", name="s", seconds=0.01)]), timeout=30))
    assert [(result.id, result.cached, result.reward) for result in stream] == [("s", True, 1.0)]
    body = {"items": [{"verifier": "sleep", "completion": "kept", "parameters": {"seconds": 0.01}}]}
    assert httpx.post(f"{server.url}/v1/verify", json=body).json()["results"][0]["cached"]
    with VerifierClient(server.url) as client:
        (verdict,) = client.verify([Item("sleep", "kept", "", parameters={"seconds": 0.01})])
    assert verdict.cached


def test_no_verdict_is_cached_without_memory(plain_server):
    slow = item("sleep", "kept", seconds=0.01)
    assert not plain_server.verify(slow)[0].cached
    assert not plain_server.verify(slow)[0].cached
    assert metric(plain_server, "cache_hits_total") == 0


def test_the_verdicts_of_a_call_past_its_deadline_are_cached(server):
    items = [item("sleep", f"part {n}", seconds=0.1) for n in range(40)]
    with pytest.raises(grpc.RpcError):
        server.verify(*items, timeout=0.6)
    assert any(result.cached for result in server.verify(*items))
