"""Callers that leave, come late, send rubbish or come in crowds; and a server that is told to stop."""

import queue
import signal
import time
from io import BytesIO
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import torch
from google.protobuf.proto import parse_length_prefixed
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from teacher_fixtures import VOCAB, Server, make_model, save_model, teacher_server
from typer.testing import CliRunner
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import status_pb2, teacher_pb2_grpc
from vold_proto.v1 import teacher_pb2 as pb
from vold_teacher.cli import app

PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def server(folder):
    with teacher_server(folder, "--max-batch-tokens", "2000", "--max-top-k", "50", "--max-candidates", "3") as server:
        yield server


def stub(server: Server) -> teacher_pb2_grpc.TeacherServiceStub:
    return teacher_pb2_grpc.TeacherServiceStub(grpc.insecure_channel(server.grpc))


def crowd(completions: int, tokens: int = 400, seed: int = 0) -> pb.ScoreRequest:
    """Work of completions x tokens, which no prompt is shared in."""
    rng = np.random.default_rng(seed)
    request = pb.ScoreRequest(request_id="crowd")
    for index in range(completions):
        request.prompts.add(ids=pack_ids([index % VOCAB, index // VOCAB]))
        request.completions.add(prompt=index, ids=pack_ids(rng.integers(0, VOCAB, tokens - 1)))
    return request


HUGE = crowd(4000)
OTHER = crowd(4000, seed=1)
HUGE_TOKENS = 4000 * 400


def small(**fields: object) -> pb.ScoreRequest:
    base = {"prompts": [pb.Prompt(ids=pack_ids([5, 6]))], "completions": [pb.Completion(id="a", ids=pack_ids([7, 8]))]}
    return pb.ScoreRequest(**(base | fields))


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.http}/metrics").text
    return float(text.split(f"\n{name} ")[1].split("\n")[0])


def computed(server: Server) -> float:
    text = httpx.get(f"{server.http}/metrics").text
    name = 'vold_teacher_computed_tokens_total{work="score"} '
    return float(text.split(name)[1].split("\n")[0]) if name in text else 0.0


def wait_until(condition) -> None:
    while not condition():
        time.sleep(0.02)


def working(server: Server) -> bool:
    return metric(server, "vold_teacher_queued_tokens") > 0


def assert_stopped(server: Server, before: float) -> None:
    """The queue is empty and most of the work of HUGE was never done."""
    wait_until(lambda: not working(server))
    assert len(stub(server).Score(small()).scores) == 1  # whatever was under way is over by now
    assert computed(server) - before < HUGE_TOKENS / 2
    assert httpx.get(f"{server.http}/healthz").status_code == 200


def test_a_cancelled_grpc_call_stops_its_compute(server):
    before = computed(server)
    future = stub(server).Score.future(HUGE)
    wait_until(lambda: computed(server) > before)
    future.cancel()
    assert_stopped(server, before)


def test_a_closed_http_connection_stops_its_compute(server):
    before = computed(server)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.http}/v1/score", content=HUGE.SerializeToString(), headers=PROTOBUF, timeout=1.0)
    assert_stopped(server, before)


def test_a_stream_whose_client_dies_stops_its_compute(server):
    before = computed(server)
    requests: queue.Queue[pb.ScoreRequest] = queue.Queue()
    requests.put(HUGE)
    call = stub(server).ScoreStream(iter(requests.get, None))
    wait_until(lambda: computed(server) > before)
    call.cancel()
    requests.put(None)
    assert_stopped(server, before)


def test_a_deadline_ends_a_call_on_every_face(server):
    before = computed(server)
    with pytest.raises(grpc.RpcError) as raised:
        stub(server).Score(HUGE, timeout=0.7)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_stopped(server, before)
    headers = {**PROTOBUF, "x-vold-timeout-seconds": "0.3"}
    response = httpx.post(f"{server.http}/v1/score", content=HUGE.SerializeToString(), headers=headers, timeout=60)
    assert response.status_code == 504
    assert status_pb2.Status.FromString(response.content).code == status_pb2.DEADLINE_EXCEEDED
    hasty = pb.ScoreRequest.FromString(HUGE.SerializeToString())
    hasty.timeout_seconds = 0.2
    replies = {reply.request_id: reply for reply in stub(server).ScoreStream(iter([hasty, small(request_id="b")]))}
    assert replies["crowd"].status.code == status_pb2.DEADLINE_EXCEEDED
    assert len(replies["b"].scores) == 1


def test_a_full_queue_refuses_with_a_delay(server):
    before = computed(server)
    first = stub(server).Score.future(HUGE)
    wait_until(lambda: computed(server) > before)
    with pytest.raises(grpc.RpcError) as raised:
        stub(server).Score(OTHER)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_pb2.Status.FromString(dict(raised.value.trailing_metadata())["vold-status-bin"])
    assert (status.code, status.field) == (status_pb2.RESOURCE_EXHAUSTED, "completions")
    assert status.reason == "queue_full"
    assert 0 < status.retry_seconds <= 60
    response = httpx.post(f"{server.http}/v1/score", content=OTHER.SerializeToString(), headers=PROTOBUF, timeout=60)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    first.cancel()
    assert_stopped(server, before)


def test_a_stream_of_rubbish_ends_with_its_cause_and_harms_nobody(server):
    channel = grpc.insecure_channel(server.grpc)
    call = channel.stream_stream("/vold.v1.TeacherService/ScoreStream")
    with pytest.raises(grpc.RpcError) as raised:
        list(call(iter([small(request_id="good").SerializeToString(), b"\xff\xff\xff"])))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a ScoreRequest" in raised.value.details()
    response = httpx.post(f"{server.http}/v1/score", content=b"\xff\xff\xff", headers=PROTOBUF)
    assert response.status_code == 422
    assert len(stub(server).Score(small()).scores) == 1


def score_both(server: Server, request: pb.ScoreRequest) -> list[pb.CompletionScore]:
    """Scores by gRPC, which HTTP must equal; the second comes out of the cache."""
    scores = list(stub(server).Score(request).scores)
    response = httpx.post(f"{server.http}/v1/score", content=request.SerializeToString(), headers=PROTOBUF)
    again = list(pb.ScoreReply.FromString(response.content).scores)
    for score in (*scores, *again):
        score.cached = False
    assert again == scores
    return scores


@pytest.mark.parametrize(
    ("bad", "field", "texts"),
    [
        ({"ids": b"12345"}, "completions[1].ids", ["5 bytes"]),
        ({"id": "good"}, "completions[1].id", ["'good'", "completions[0]", "give each its own"]),
        ({"ids": pack_ids([3, VOCAB])}, "completions[1].ids", [f"[1] is {VOCAB}", f"0 to {VOCAB - 1}"]),
        ({"ids": pack_ids([-1])}, "completions[1].ids", ["[0] is -1"]),
        ({"ids": b""}, "completions[1].ids", ["empty", "leave the item out"]),
        ({"ids": pack_ids([1] * 600)}, "completions[1].ids", ["600", "at most 512", "shorten"]),
        ({"prompt": 1}, "prompts[1].ids", ["empty", "BOS"]),
        ({"prompt": 2}, "prompts[2].ids", [f"is {VOCAB + 4}"]),
        ({"prompt": 9}, "completions[1].prompt", ["is 9", "3 prompts"]),
        ({"candidates": pb.Candidates(ids=pack_ids([1] * 8), per_position=4)}, "completions[1].candidates", ["4", "3"]),
        (
            {"candidates": pb.Candidates(ids=pack_ids([1, 2, 3]), per_position=2)},
            "completions[1].candidates.ids",
            ["4"],
        ),
    ],
)
def test_a_bad_item_says_what_is_wrong_on_both_faces(server, bad, field, texts):
    request = pb.ScoreRequest(
        prompts=[pb.Prompt(ids=pack_ids([1])), pb.Prompt(), pb.Prompt(ids=pack_ids([VOCAB + 4]))],
        completions=[
            pb.Completion(id="good", ids=pack_ids([4])),
            pb.Completion(**({"id": "bad", "ids": pack_ids([3, 4])} | bad)),
        ],
    )
    good, faulty = score_both(server, request)
    assert not good.HasField("status")
    assert len(unpack_floats(good.logprobs)) == 1
    assert (faulty.status.code, faulty.status.field) == (status_pb2.INVALID_ARGUMENT, field)
    assert all(text in faulty.status.message for text in texts), faulty.status.message


@pytest.mark.parametrize(
    ("options", "field", "text"),
    [
        ({"temperature": 0}, "options.temperature", "is 0: scoring needs a finite value of at least 0.0001"),
        ({"temperature": -2}, "options.temperature", "is -2"),
        ({"temperature": float("nan")}, "options.temperature", "is nan"),
        ({"top_k": 51}, "options.top_k", "is 51: this server gives at most 50"),
        ({"dtype": 7}, "options.dtype", "is 7: use F32 (0), F16 (1) or BF16 (2)"),
    ],
)
def test_bad_score_options_fail_the_request_on_both_faces(server, options, field, text):
    request = small(options=pb.ScoreOptions(**options))
    with pytest.raises(grpc.RpcError) as raised:
        stub(server).Score(request)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    by_grpc = status_pb2.Status.FromString(dict(raised.value.trailing_metadata())["vold-status-bin"])
    response = httpx.post(f"{server.http}/v1/score", content=request.SerializeToString(), headers=PROTOBUF)
    assert response.status_code == 422
    assert status_pb2.Status.FromString(response.content) == by_grpc
    assert by_grpc.field == field
    assert text in by_grpc.message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": 0}, "options.max_tokens"),
        ({"temperature": -1}, "options.temperature"),
        ({"top_p": 0}, "options.top_p"),
        ({"top_p": 1.5}, "options.top_p"),
        ({"n": 5000}, "options.n"),
        ({"stop_ids": [VOCAB]}, "options.stop_ids[0]"),
        ({"stop_ids": [3] * 65}, "options.stop_ids"),
    ],
)
def test_bad_generate_options_fail_alike_on_both_faces(server, options, field):
    request = pb.GenerateRequest(
        prompts=[pb.GeneratePrompt(ids=pack_ids([5]))], options=pb.GenerateOptions(**({"max_tokens": 2} | options))
    )
    with pytest.raises(grpc.RpcError) as raised:
        list(stub(server).Generate(request))
    by_grpc = status_pb2.Status.FromString(dict(raised.value.trailing_metadata())["vold-status-bin"])
    response = httpx.post(f"{server.http}/v1/generate", content=request.SerializeToString(), headers=PROTOBUF)
    assert response.status_code == 422
    assert status_pb2.Status.FromString(response.content) == by_grpc
    assert by_grpc.field == field


def test_json_says_which_fields_it_does_not_take(server):
    good = {"prompts": [{"ids": [1]}], "completions": [{"ids": [2]}]}
    for change, field, text in [
        ({"options": {"dtype": "BF16"}}, "options.dtype", "as application/x-protobuf; got 'BF16'"),
        ({"temprature": 1}, "temprature", "got 1"),
        ({"completions": [{"ids": ["x"]}]}, "completions.0.ids.0", "got 'x'"),
    ]:
        response = httpx.post(f"{server.http}/v1/score", json=good | change)
        assert response.status_code == 422
        assert response.json()["error"]["field"] == field
        assert text in response.json()["error"]["message"]
    assert httpx.post(f"{server.http}/v1/score", json=good | {"options": {"dtype": "F32"}}).status_code == 200


def test_replies_come_in_the_dtype_that_was_asked_for(server):
    exact = unpack_floats(score_both(server, small())[0].logprobs)
    for dtype, error in ((pb.F16, 1e-3), (pb.BF16, 1e-2)):
        (score,) = score_both(server, small(options=pb.ScoreOptions(dtype=dtype, entropy=True, top_k=3)))
        assert (len(score.logprobs), len(score.entropy), len(score.top_logprobs)) == (4, 4, 12)
        np.testing.assert_allclose(unpack_floats(score.logprobs, dtype), exact, rtol=error)


def test_hidden_states_are_those_that_the_head_reads(server):
    model = make_model("qwen3")
    (score,) = score_both(server, small(options=pb.ScoreOptions(hidden_states=True)))
    with torch.no_grad():
        expected = model.base_model(torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0, 1:3]
    hidden = unpack_floats(score.hidden_states).reshape(2, -1)
    np.testing.assert_allclose(hidden, expected.numpy(), rtol=0, atol=5e-5)
    body = {"prompts": [{"ids": [5, 6]}], "completions": [{"ids": [7, 8]}], "options": {"hidden_states": True}}
    as_json = httpx.post(f"{server.http}/v1/score", json=body).json()["scores"][0]["hidden_states"]
    np.testing.assert_allclose(as_json, hidden, atol=1e-6)


def test_a_shared_prompt_is_computed_once(server):
    before = computed(server)
    prompt, group, length = list(range(100)), 8, 11
    request = pb.ScoreRequest(prompts=[pb.Prompt(ids=pack_ids(prompt))])
    for index in range(group):
        request.completions.add(ids=pack_ids([index] * length))
    assert len(stub(server).Score(request).scores) == group
    assert computed(server) - before == len(prompt) + group * (length - 1)


def test_generation_over_http_as_protobuf_equals_grpc(server):
    options = pb.GenerateOptions(max_tokens=6, n=3, seed=5, stream_tokens=True)
    request = pb.GenerateRequest(prompts=[pb.GeneratePrompt(id="p", ids=pack_ids([9, 8]))], options=options)
    body = httpx.post(f"{server.http}/v1/generate", content=request.SerializeToString(), headers=PROTOBUF).content
    stream = BytesIO(body)
    events = []
    while (event := parse_length_prefixed(pb.GenerateEvent, stream)) is not None:
        events.append(event)

    def tokens(events: list[pb.GenerateEvent]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for event in events:
            found.setdefault(event.index, []).extend(unpack_ids(event.ids).tolist())
        return found

    assert tokens(events) == tokens(list(stub(server).Generate(request)))
    assert sum(event.finished for event in events) == 3
    assert len(events) > 3


def test_reflection_lists_the_services(server):
    services = ProtoReflectionDescriptorDatabase(grpc.insecure_channel(server.grpc)).get_services()
    assert {"vold.v1.TeacherService", "grpc.health.v1.Health"} <= set(services)


def test_sigterm_drains_what_is_under_way_and_ends_with_status_0(folder):
    request = crowd(600, 200)
    with teacher_server(folder, "--max-batch-tokens", "2000") as server:
        under_way = stub(server).Score.future(request)
        wait_until(lambda: computed(server) > 0)
        server.process.send_signal(signal.SIGTERM)
        assert len(under_way.result().scores) == 600
        assert server.process.wait(30) == 0
        with pytest.raises(grpc.RpcError):
            stub(server).Score(small(), timeout=5)


def broken(folder: Path, kind: str) -> Path:
    if kind != "missing":
        folder.mkdir()
    if kind == "file":
        folder.rmdir()
        folder.write_text("")
    if kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    if kind in ("config", "untyped", "pickle"):
        text = {"config": "{", "untyped": "{}", "pickle": '{"model_type": "qwen3"}'}[kind]
        (folder / "config.json").write_text(text)
    if kind == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "there is no such folder"),
        ("file", "not a folder"),
        ("empty", "it has no config.json"),
        ("adapter", "it holds an adapter and no model; merge it into its base model"),
        ("config", "its config.json is not JSON"),
        ("untyped", "names no model_type"),
        ("pickle", "no *.safetensors"),
    ],
)
def test_a_folder_that_is_no_model_ends_the_command_with_one_line(tmp_path, kind, text):
    path = broken(tmp_path / "model", kind)
    result = CliRunner().invoke(app, ["serve", "--model", str(path), "--http", "127.0.0.1:0", "--no-grpc"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: --model {path}")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Qwen/Qwen3-8B", "which is not fetched here, run `hf download Qwen/Qwen3-8B --local-dir Qwen/Qwen3-8B`"),
        ("~/teacher", "~ has no meaning here, write the whole path"),
    ],
)
@pytest.mark.parametrize("option", ["--model", "--tokenizer"])
def test_a_model_that_is_no_folder_says_how_to_get_it(option, name, text):
    others = [] if option == "--model" else ["--backend", "upstream", "--model", "vllm+http://127.0.0.1:9"]
    result = CliRunner().invoke(app, ["serve", option, name, *others, "--http", "127.0.0.1:0", "--no-grpc"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {option} {name}: there is no such folder; ")
    assert text in result.stderr
