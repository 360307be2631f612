"""Malformed bodies: each is refused, and the service goes on."""

import json

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verifier_server import item, running
from vold_proto.v1 import verifier_pb2

GOOD = {"items": [{"id": "1", "verifier": "numeric", "completion": "1", "reference": "1", "parameters": {"a": [1]}}]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
PACKED = verifier_pb2.VerifyRequest(items=[item("numeric", "1", "1", relative_tolerance=0.1)]).SerializeToString()


@pytest.fixture(scope="module")
def server():
    with running("--workers", "1") as server:
        yield server


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url) as client:
        yield client


def is_healthy(server) -> bool:
    return server.verify(item("exact", "1", "1"))[0].reward == 1.0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("nested", [False, True])
def test_an_error_names_a_parameter_that_is_not_finite(server, http, number, nested):
    """Python's json writes and reads such numbers; protobuf carries them, and refuses to convert them to JSON."""
    parameters = {"relative_tolerance": [{"a": number}] if nested else number}
    body = {"items": [{**GOOD["items"][0], "parameters": parameters}, GOOD["items"][0] | {"parameters": {}}]}
    reply = http.post("/v1/verify", content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == 200
    bad, good = reply.json()["results"]
    assert bad["error"]["field"] == "items[0].parameters"
    assert "send finite numbers" in bad["error"]["message"]
    assert good["reward"] == 1.0
    (verdict,) = server.verify(item("numeric", "1", "1", **parameters))
    assert "send finite numbers" in verdict.error.message


STREAM_ENDS = (None, *(getattr(grpc.StatusCode, name) for name in ("INVALID_ARGUMENT", "UNKNOWN", "INTERNAL")))


def status_of(call) -> grpc.StatusCode | None:
    """Return the status of the call, None for OK."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return None


def corrupted(good: bytes) -> st.SearchStrategy[bytes]:
    """`good` with some bytes changed, left out, or put in."""
    edit = st.tuples(st.integers(0, len(good)), st.integers(0, 3), st.binary(max_size=4))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        body = good
        for at, removed, added in edits:
            body = body[:at] + added + body[at + removed :]
        return body

    return st.lists(edit, min_size=1, max_size=4).map(apply)


BODIES = st.one_of(
    st.binary(max_size=60),
    corrupted(json.dumps(GOOD).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps({"items": [value]}).encode()),
    JSON.map(lambda value: json.dumps({"items": [{**GOOD["items"][0], "parameters": value}]}).encode()),
    st.sampled_from([b"[" * 100_000, b'{"items":' * 20_000, b'{"items": [{"verifier": "\\ud800"}]}', b"\xff\xfe", b""]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BODIES)
def test_no_json_body_breaks_the_service(http, body):
    reply = http.post("/v1/verify", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (200, 422), reply.text
    if reply.status_code == 422:
        assert reply.json()["error"]["code"] == "INVALID_ARGUMENT"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60) | corrupted(PACKED))
def test_no_packed_body_breaks_the_service(server, http, body):
    headers = {"content-type": "application/x-protobuf"}
    assert http.post("/v1/verify", content=body, headers=headers).status_code in (200, 422)
    raw = server.channel.unary_unary("/vold.v1.VerifierService/Verify")
    assert status_of(lambda: raw(body, timeout=30)) in (None, grpc.StatusCode.INVALID_ARGUMENT)
    stream = server.channel.stream_stream("/vold.v1.VerifierService/VerifyStream")
    assert status_of(lambda: list(stream(iter([body]), timeout=30))) in STREAM_ENDS


def test_the_service_is_healthy_after_the_other_tests(server):
    assert is_healthy(server)
