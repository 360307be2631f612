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


UNREADABLE_ITEMS = {
    "no completion": ('{"id": "x", "verifier": "math", "reference": "1"}', "completion"),
    "a null completion": ('{"verifier": "math", "completion": null, "reference": "1"}', "completion"),
    "a numeric completion": ('{"verifier": "math", "completion": 3, "reference": "1"}', "completion"),
    "half of a character": (r'{"verifier": "exact", "completion": "\ud800", "reference": "1"}', "completion"),
    "half of a character in the id": (r'{"id": "\udc00", "verifier": "exact", "completion": "1"}', "id"),
    "half of a character in a parameter": (
        r'{"verifier": "exact", "completion": "1", "reference": "1", "parameters": {"a": "\ud800"}}',
        "parameters",
    ),
    "a huge integer": (
        '{"verifier": "numeric", "completion": "1", "reference": "1", "parameters": {"a": 1' + "0" * 6000 + "}}",
        "parameters",
    ),
    "a list of references": ('{"verifier": "math", "completion": "1", "reference": ["1"]}', "reference"),
    "an unknown field": ('{"verifier": "math", "completion": "1", "answer": "1"}', "answer"),
    "no object": ('"math"', ""),
    "deep parameters": (
        '{"verifier": "math", "completion": "1", "reference": "1", "parameters": {"a": ' + "[" * 900 + "]" * 900 + "}}",
        "parameters",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE_ITEMS)
def test_an_item_that_cannot_be_read_does_not_lose_the_others(http, name):
    text, field = UNREADABLE_ITEMS[name]
    good = json.dumps({"id": "g", "verifier": "numeric", "completion": "42", "reference": 42})
    body = f'{{"items": [{good}, {text}, {good}]}}'
    reply = http.post("/v1/verify", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    first, bad, last = reply.json()["results"]
    assert (first["reward"], last["reward"]) == (1.0, 1.0)
    assert bad["reward"] is None
    assert bad["error"]["code"] == "INVALID_ARGUMENT"
    assert bad["error"]["field"] == f"items[1].{field}".rstrip(".")
    assert f"items[1].{field}".rstrip(".") in bad["error"]["message"]


def test_a_number_is_a_reference_and_zero_on_failure_counts_a_missing_completion(http):
    items = [
        {"verifier": "math", "completion": r"\boxed{0.5}", "reference": 0.5},
        {"verifier": "math", "completion": r"\boxed{0.5}", "reference": True},
        {"verifier": "math", "completion": None, "reference": "1", "zero_on_failure": True},
    ]
    results = http.post("/v1/verify", json={"items": items}).json()["results"]
    assert [result["reward"] for result in results] == [1.0, None, 0.0]
    assert [result["error"] and result["error"]["field"] for result in results] == [
        None,
        "items[1].reference",
        "items[2].completion",
    ]


@pytest.mark.parametrize(("name", "remedy"), [("code", "--enable code"), ("judge", "--judge-url")])
def test_a_verifier_that_is_off_says_how_to_turn_it_on(server, http, name, remedy):
    (result,) = server.verify(item(name, "1", "1"))
    body = {"items": [{"verifier": name, "completion": "1", "reference": "1"}]}
    (over_http,) = http.post("/v1/verify", json=body).json()["results"]
    for message in (result.error.message, over_http["error"]["message"]):
        assert remedy in message
        assert "did you mean" not in message


@pytest.mark.parametrize("options", [["3", "4"], [3, 4], {"A": 3, "B": 4.0}, [{"A": 3}, {"B": "4"}]])
def test_options_may_be_a_list_and_their_texts_numbers(server, http, options):
    (result,) = server.verify(item("choice", r"\boxed{4}", "B", options=options))
    body = {"verifier": "choice", "completion": r"\boxed{4}", "reference": "B", "parameters": {"options": options}}
    (over_http,) = http.post("/v1/verify", json={"items": [body]}).json()["results"]
    assert (result.reward, over_http["reward"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A": None}, "option 'A'"),
        ([True], "option 'A'"),
        (["x"] * 27, "over the limit of 26"),
        ([{"A": "x"}, {"a": "y"}], "named twice"),
        ({"AB": "x"}, "is not a letter"),
    ],
)
def test_options_that_are_no_texts_are_refused(server, options, message):
    (result,) = server.verify(item("choice", "B", "B", options=options))
    assert result.error.field == "items[0].parameters.options"
    assert message in result.error.message


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
