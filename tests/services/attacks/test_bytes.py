"""Every byte is bounded before it is computed, kept, logged or sent back."""

import json
import socket
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from known_keys import known_key
from teacher_fixtures import save_model, teacher_server
from verifier_server import running
from vold_client import Completion, InvalidArgument, ResourceExhausted, ScoreRequest, TeacherClient
from vold_proto.arrays import pack_ids
from vold_proto.v1 import status_pb2, teacher_pb2_grpc, verifier_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.keys import digest_of

MIB = 1 << 20
FOUR, OPS = known_key("four"), known_key("ops")
PROTOBUF = {"content-type": "application/x-protobuf"}
MAX_REPLY = 2 * MIB


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    tenants = [
        {"name": "four", "max_concurrent": 4, "keys": [{"sha256": digest_of(FOUR).hex()}]},
        {"name": "ops", "admin": True, "keys": [{"sha256": digest_of(OPS).hex()}]},
    ]
    file.write_text(yaml.safe_dump({"tenants": tenants}))
    return file


@pytest.fixture(scope="module")
def roomy(folder, keys):
    """A teacher with the default limits of bytes."""
    with teacher_server(folder, "--api-keys", str(keys)) as server:
        yield server


@pytest.fixture(scope="module")
def teacher(folder, keys, log):
    options = ["--api-keys", str(keys), "--max-reply-bytes", str(MAX_REPLY), "--max-tenant-bytes", str(12 * MIB)]
    with log.open("w") as file, teacher_server(folder, *options, "--log-level", "info", log=file) as server:
        yield server


@pytest.fixture(scope="module")
def verifier():
    with running("--workers", "1") as server:
        yield server


def metric(server, name: str) -> float:
    text = httpx.get(f"{server.http}/metrics", headers=bearer(OPS)).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def work(completions: int, positions: int, **options: object) -> pb.ScoreRequest:
    """Completions that differ."""
    request = pb.ScoreRequest(prompts=[pb.Prompt(ids=pack_ids([5, 6]))], options=pb.ScoreOptions(**options))
    for index in range(completions):
        ids = np.full(positions, 7)
        ids[: min(2, positions)] = [index % 100, index // 100][: min(2, positions)]
        request.completions.add(id=str(index), ids=pack_ids(ids))
    return request


def stub(server):
    channel = grpc.insecure_channel(server.grpc, options=[("grpc.max_receive_message_length", -1)])
    return teacher_pb2_grpc.TeacherServiceStub(channel)


METADATA = tuple(bearer(FOUR).items())


def test_a_reply_that_is_too_large_is_refused_before_it_is_computed(teacher):
    request = work(4000, 504, top_k=100, hidden_states=True, entropy=True)
    before = metric(teacher, "vold_teacher_computed_tokens_total")
    with pytest.raises(grpc.RpcError) as raised:
        stub(teacher).Score(request, metadata=METADATA)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "completions may have" in raised.value.details()
    headers = {**PROTOBUF, **bearer(FOUR)}
    for accept in ("application/x-protobuf", "application/json"):
        reply = httpx.post(
            f"{teacher.http}/v1/score", content=request.SerializeToString(), headers={**headers, "accept": accept}
        )
        assert reply.status_code == 422
    (reply,) = stub(teacher).ScoreStream(iter([request]), metadata=METADATA)
    assert "a tenant may have" in reply.status.message
    assert metric(teacher, "vold_teacher_computed_tokens_total") == before


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(0, 20),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([pb.F32, pb.F16, pb.BF16]),
    st.integers(0, 3),
    st.sampled_from(["application/x-protobuf", "application/json"]),
    st.text(max_size=40),
)
def test_no_reply_is_larger_than_was_reckoned(teacher, lengths, top_k, flags, dtype, candidates, accept, name):
    """With a limit of one byte less the same request would be refused, if the size was reckoned well: here it is only
    shown that the reply is no larger than the message of the refusal says it could be."""
    entropy, hidden_states, ranks = flags
    if accept.endswith("json"):
        dtype = pb.F32
    request = pb.ScoreRequest(
        prompts=[pb.Prompt(ids=pack_ids([5]))],
        options=pb.ScoreOptions(top_k=top_k, entropy=entropy, hidden_states=hidden_states, ranks=ranks, dtype=dtype),
    )
    for index, length in enumerate(lengths):
        completion = request.completions.add(id=f"{name}{index}", ids=pack_ids([7 + index] * length))
        if candidates:
            completion.candidates.ids = pack_ids([9] * candidates * length)
            completion.candidates.per_position = candidates
    from vold_teacher.backends.base import Capabilities
    from vold_teacher.reply import json_row_bytes, row_bytes
    from vold_teacher.validation import Limits, each_sequence, read_score_options

    limits = Limits(120, 512, 100, 100, 100, Capabilities(ranks=True), "torch")
    options = read_score_options(request.options, limits)
    reckoned = 1000
    for index, read in each_sequence(request, options, limits):
        identifier = request.completions[index].id
        if accept.endswith("json"):
            reckoned += json_row_bytes(read, identifier, 64)
        else:
            reckoned += row_bytes(read, identifier, dtype, 64)
    headers = {**PROTOBUF, **bearer(OPS), "accept": accept}
    reply = httpx.post(f"{teacher.http}/v1/score", content=request.SerializeToString(), headers=headers)
    assert reply.status_code == 200
    assert len(reply.content) <= reckoned


def test_a_large_reply_comes_in_parts_that_are_the_whole(teacher):
    request = work(40, 100, top_k=100, entropy=True)  # 3.2 MB
    request.request_id = "parts"
    parts = list(stub(teacher).ScoreStream(iter([request]), metadata=METADATA))
    assert [part.part for part in parts] == list(range(1, len(parts) + 1))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.request_id for part in parts} == {"parts"}
    assert max(part.ByteSize() for part in parts) <= MAX_REPLY + 1000
    joined = [score for part in parts for score in part.scores]
    assert [score.id for score in joined] == [str(index) for index in range(40)]
    for index in (0, 39):
        single = work(40, 100, top_k=100, entropy=True)
        del single.completions[:index]
        del single.completions[1:]
        whole = stub(teacher).Score(single, metadata=METADATA)
        assert (whole.part, whole.last) == (0, True)
        assert whole.scores[0].top_logprobs == joined[index].top_logprobs
    with TeacherClient(f"grpc://{teacher.grpc}", api_key=FOUR) as client:
        completions = [Completion(0, [index % 100, index // 100] + [7] * 98) for index in range(40)]
        (result,) = client.score_stream([ScoreRequest([[5, 6]], completions, top_k=100, hidden_states=True)])
    assert result.error is None
    assert [score.hidden_states.shape for score in result.scores] == [(100, 64)] * 40


def test_one_completion_whose_row_is_too_large_is_refused_on_a_stream_too(teacher):
    request = work(1, 500, top_k=100)
    request.completions.add(id="long", ids=pack_ids([7] * 500))
    request.options.hidden_states = True
    request.options.top_k = 120
    request.completions[1].candidates.per_position = 1000
    request.completions[1].candidates.ids = pack_ids([9] * 500_000)
    (reply,) = stub(teacher).ScoreStream(iter([request]), metadata=METADATA)
    assert reply.status.field == "completions[1]"


def running_requests(server) -> int:
    with TeacherClient(server.http, api_key=FOUR) as client:
        return client.quota().running


def wait_until(condition) -> None:
    while not condition():
        time.sleep(0.02)


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_a_reply_that_nobody_reads_keeps_its_place(roomy, face):
    """A tenant with 4 requests at a time asks 12 times for what is cached, and reads nothing."""
    teacher = roomy
    request = work(120, 100, top_k=100)  # 10 MB, more than a connection buffers
    stub(teacher).Score(request, metadata=METADATA)
    leave = {"grpc": unread_streams, "http": unread_sockets}[face](teacher, request.SerializeToString())
    wait_until(lambda: running_requests(teacher) == 4)
    for url in (f"grpc://{teacher.grpc}", teacher.http):
        with TeacherClient(url, api_key=FOUR, retries=0) as client, pytest.raises(ResourceExhausted):
            client.tokenizer()  # a large file, which a caller may leave unread as well
    with TeacherClient(f"grpc://{teacher.grpc}", api_key=FOUR, retries=0) as client:
        for _ in range(20):
            with pytest.raises(ResourceExhausted, match="4 requests under way"):
                client.score([[5]], [Completion(0, [6])])
    leave()
    wait_until(lambda: running_requests(teacher) == 0)


def unread_streams(teacher, request: bytes):
    channels, calls = [], []
    for _ in range(12):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        channels.append(grpc.insecure_channel(teacher.grpc, options=options))
        score = channels[-1].stream_stream("/vold.v1.TeacherService/ScoreStream")
        calls.append(score(iter([request] * 3), metadata=METADATA))
    return lambda: [call.cancel() for call in calls]


def unread_sockets(teacher, request: bytes):
    url = httpx.URL(teacher.http)
    head = f"POST /v1/score HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {FOUR}\r\n"
    head += f"content-type: application/x-protobuf\r\ncontent-length: {len(request)}\r\n\r\n"
    connections = []
    for _ in range(12):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.host, url.port))
        connection.sendall(head.encode() + request)
        connections.append(connection)
    return lambda: [connection.close() for connection in connections]


def test_calls_one_after_another_each_find_their_place_free(teacher):
    """A reply gives its place back before the caller can ask again: 4 threads, 4 places, no refusal."""
    refused = []

    def ask(url: str) -> None:
        with TeacherClient(url, api_key=FOUR, retries=0) as client:
            for _ in range(25):
                try:
                    client.score([[5]], [Completion(0, [6])])
                except ResourceExhausted as error:
                    refused.append(error)

    for url in (f"grpc://{teacher.grpc}", teacher.http):
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert refused == []


def test_bytes_under_way_are_bounded_for_a_tenant(teacher):
    request = work(25, 100, top_k=100)  # 2 MB of reply
    calls = [stub(teacher).ScoreStream(iter([request] * 3), metadata=tuple(bearer(OPS).items())) for _ in range(3)]
    replies = [reply for call in calls for reply in call]
    refused = [reply for reply in replies if reply.status.code]
    assert all(reply.status.code == status_pb2.RESOURCE_EXHAUSTED for reply in refused)
    assert all("bytes of requests and replies under way" in reply.status.message for reply in refused)
    assert len(refused) < len(replies)


LONG = "\u202e" + "a" * MIB


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": LONG}, "request_id"),
        ({"run_id": LONG}, "run_id"),
        ({"model": LONG}, "model"),
        ({"expect_weights_fingerprint": LONG}, "expect_weights_fingerprint"),
        ({"completions": [pb.Completion(id=LONG, ids=pack_ids([5]))]}, "completions[0].id"),
    ],
)
def test_long_ids_and_names_of_a_score_are_refused_and_not_repeated(teacher, log, change, field):
    before = log.stat().st_size
    request = work(1, 2)
    if "completions" in change:
        del request.completions[:]
    request.MergeFrom(pb.ScoreRequest(**change))
    check_refusal(teacher, "Score", "/v1/score", request, field)
    assert log.stat().st_size - before < 10_000
    with TeacherClient(teacher.http, api_key=OPS) as client:
        assert all(len(row.run_id) <= 200 for row in client.usage())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": LONG}, "request_id"),
        ({"run_id": LONG}, "run_id"),
        ({"model": LONG}, "model"),
        ({"prompts": [pb.GeneratePrompt(id=LONG, ids=pack_ids([5]))]}, "prompts[0].id"),
    ],
)
def test_long_ids_and_names_of_a_generation_are_refused_and_not_repeated(teacher, log, change, field):
    before = log.stat().st_size
    base = {"prompts": [pb.GeneratePrompt(ids=pack_ids([5]))], "options": pb.GenerateOptions(max_tokens=1)}
    check_refusal(teacher, "Generate", "/v1/generate", pb.GenerateRequest(**(base | change)), field)
    assert log.stat().st_size - before < 10_000


def check_refusal(teacher, method: str, path: str, request, field: str) -> None:
    channel = grpc.insecure_channel(teacher.grpc)
    call = channel.unary_stream(f"/vold.v1.TeacherService/{method}")
    with pytest.raises(grpc.RpcError) as raised:
        list(call(request.SerializeToString(), metadata=METADATA))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    reply = httpx.post(
        f"{teacher.http}{path}", content=request.SerializeToString(), headers={**PROTOBUF, **bearer(FOUR)}
    )
    status = status_pb2.Status.FromString(reply.content)
    assert (reply.status_code, status.field) == (422, field)
    assert status.message == raised.value.details()
    assert len(reply.content) + len(str(reply.headers)) < 2000


@pytest.mark.parametrize("name", ["x-request-id", "x-vold-run-id", "x-vold-timeout-seconds"])
def test_long_headers_are_refused_and_not_repeated(teacher, log, name):
    before = log.stat().st_size
    headers = {**bearer(FOUR), name: "a" * 20_000}
    body = {"prompts": [{"ids": [5]}], "completions": [{"ids": [6]}]}
    reply = httpx.post(f"{teacher.http}/v1/score", json=body, headers=headers)
    assert len(reply.content) + len(str(reply.headers)) < 2000
    assert reply.status_code in (200, 422)
    assert log.stat().st_size - before < 5000


@pytest.mark.parametrize(
    "body",
    [
        {LONG[:-300]: 1},
        {"model": LONG[:-300]},
        {"prompts": LONG[:-300]},
        {"prompts": [{LONG[:-300]: 1}]},
        {"request_id": LONG[:-300], "prompts": [], "completions": []},
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/generate", "/v1/completions", "/tokenize"])
def test_errors_of_json_do_not_repeat_it(teacher, log, path, body):
    before = log.stat().st_size
    data = json.dumps(body, ensure_ascii=False).encode()[: MIB - 1]
    reply = httpx.post(f"{teacher.http}{path}", content=data, headers=bearer(FOUR))
    assert reply.status_code in (400, 404, 422)
    assert len(reply.content) < 3000
    assert log.stat().st_size - before < 5000


def test_many_errors_of_one_request_are_short(teacher):
    request = work(1, 2)
    request.completions.extend([pb.Completion(id="b" * 200, ids=pack_ids([5]))] * 800)
    reply = stub(teacher).Score(request, metadata=METADATA)
    assert reply.ByteSize() < 800 * 700


def test_a_request_id_cannot_forge_or_turn_a_line_of_the_log(teacher, log):
    before = log.stat().st_size
    request = work(1, 2)
    request.request_id = "a\u202e\n2026 INFO forged\u2028\x1b[2J"
    request.model = "nothing"
    with pytest.raises(grpc.RpcError):
        stub(teacher).Score(request, metadata=METADATA)
    while "\\u202e" not in (text := log.read_bytes()[before:].decode()):  # the line follows the reply
        time.sleep(0.02)
    assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert not any(line.startswith("2026 INFO forged") for line in text.splitlines())


def test_the_verifiers_ids_and_names(verifier):
    def verify(**fields: object) -> list[verifier_pb2.VerifyResult]:
        item = verifier_pb2.VerifyItem(**({"verifier": "exact", "completion": "1", "reference": "1"} | fields))
        return list(verifier.stub.Verify(verifier_pb2.VerifyRequest(items=[item])).results)

    with pytest.raises(grpc.RpcError, match=r"items\[0\].id has"):
        verify(id=LONG)
    (result,) = verify(verifier=LONG)
    assert (result.error.field, len(result.error.message) < 300) == ("items[0].verifier", True)
    request = verifier_pb2.VerifyRequest(request_id=LONG)
    with pytest.raises(grpc.RpcError, match="request_id has"):
        verifier.stub.Verify(request)
    (streamed,) = verifier.stub.VerifyStream(iter([verifier_pb2.VerifyItem(id=LONG, verifier="exact")]))
    assert (streamed.error.field, len(streamed.id)) == ("id", 200)
    reply = httpx.post(f"{verifier.url}/v1/verify", json={"items": [{LONG[:-300]: 1}]})
    assert (reply.status_code, len(reply.content) < 2000) == (200, True)  # the fault is the item's
    assert reply.json()["results"][0]["error"]["code"] == "INVALID_ARGUMENT"


def test_a_long_prompt_is_refused_with_its_limit(teacher):
    with TeacherClient(f"grpc://{teacher.grpc}", api_key=FOUR) as client:
        limit = client.info().max_prompt_chars
        assert (client.info().max_reply_bytes, client.info().max_rows, limit) == (MAX_REPLY, 256, 512 * 11)
        long = [[{"role": "user", "content": "a" * (limit + 1)}]]
        (generation,) = client.generate(long, max_tokens=1)
    assert isinstance(generation.error, InvalidArgument)
    assert str(limit) in generation.error.message
