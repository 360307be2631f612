"""Scores and completions of a real server against plain transformers forwards."""

import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teacher_fixtures import VOCAB, Server, make_model, save_model, teacher_server
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import status_pb2, teacher_pb2_grpc
from vold_proto.v1 import teacher_pb2 as pb

PROTOBUF = {"content-type": "application/x-protobuf"}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_model(tmp_path_factory.mktemp("teacher") / "tiny")
    with teacher_server(folder, "--max-batch-tokens", "200") as server:
        yield server


@pytest.fixture(scope="module", params=["qwen3", "gemma2", "qwen3-moe"])
def served(request, tmp_path_factory):
    """A model and the server that serves it."""
    if request.param == "qwen3":
        yield make_model("qwen3"), request.getfixturevalue("qwen")
        return
    folder = save_model(tmp_path_factory.mktemp("teacher") / request.param, request.param)
    with teacher_server(folder, "--max-batch-tokens", "200") as server:
        yield make_model(request.param), server


def stub(server: Server) -> teacher_pb2_grpc.TeacherServiceStub:
    return teacher_pb2_grpc.TeacherServiceStub(grpc.insecure_channel(server.grpc))


def ragged(seed: int, ragged_candidates: bool = True, temperature: float = 0.7) -> pb.ScoreRequest:
    rng = np.random.default_rng(seed)
    options = pb.ScoreOptions(temperature=temperature, top_k=5, entropy=True)
    request = pb.ScoreRequest(request_id=str(seed), options=options)
    for length in rng.integers(1, 30, 4):
        request.prompts.add(ids=pack_ids(rng.integers(0, VOCAB, length)))
    for index in range(14):
        length = int(rng.integers(1, 40))
        item = request.completions.add(
            id=f"c{index}", prompt=int(rng.integers(0, 4)), ids=pack_ids(rng.integers(0, VOCAB, length))
        )
        counts = rng.integers(0, 4, length) if ragged_candidates else np.full(length, 3)
        item.candidates.ids = pack_ids(rng.integers(0, VOCAB, counts.sum()))
        if ragged_candidates:
            item.candidates.counts = pack_ids(counts)
        else:
            item.candidates.per_position = 3
    return request


def assert_equals_forward(model, request: pb.ScoreRequest, reply: pb.ScoreReply) -> None:
    for asked, score in zip(request.completions, reply.scores, strict=True):
        assert asked.id == score.id
        prompt, ids = unpack_ids(request.prompts[asked.prompt].ids), unpack_ids(asked.ids)
        sequence = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))[None]
        with torch.no_grad():
            logits = model(sequence).logits[0, len(prompt) - 1 : -1] / request.options.temperature
        expected = logits.log_softmax(-1)
        rows = torch.arange(len(ids))
        np.testing.assert_allclose(unpack_floats(score.logprobs), expected[rows, ids.astype(np.int64)], **TOLERANCE)
        top = expected.topk(5, -1)
        np.testing.assert_allclose(unpack_floats(score.top_logprobs).reshape(-1, 5), top.values, **TOLERANCE)
        top_ids = torch.from_numpy(unpack_ids(score.top_ids).reshape(-1, 5).astype(np.int64))
        np.testing.assert_allclose(expected.gather(1, top_ids), top.values, **TOLERANCE)
        entropy = -(expected.exp() * expected).sum(-1)
        np.testing.assert_allclose(unpack_floats(score.entropy), entropy, **TOLERANCE)
        wanted = asked.candidates
        counts = unpack_ids(wanted.counts) if wanted.counts else np.full(len(ids), wanted.per_position)
        picked = expected[np.repeat(np.arange(len(ids)), counts), unpack_ids(wanted.ids).astype(np.int64)]
        np.testing.assert_allclose(unpack_floats(score.candidate_logprobs), picked, **TOLERANCE)


def test_scores_equal_a_plain_forward(served):
    model, server = served
    for ragged_candidates in (True, False):
        request = ragged(1, ragged_candidates)
        assert_equals_forward(model, request, stub(server).Score(request))


def test_concurrent_callers_and_a_stream_get_their_own_numbers(served):
    model, server = served
    requests = {str(seed): ragged(seed, temperature=1.0 + seed / 10) for seed in range(2, 8)}
    futures = {key: stub(server).Score.future(request) for key, request in requests.items()}
    for key, future in futures.items():
        assert_equals_forward(model, requests[key], future.result())
    bad = pb.ScoreRequest(request_id="bad", model="nobody")
    replies = {reply.request_id: reply for reply in stub(server).ScoreStream(iter([bad, *requests.values()]))}
    assert replies.pop("bad").status.code == status_pb2.NOT_FOUND
    assert set(replies) == set(requests)
    for key, reply in replies.items():
        assert_equals_forward(model, requests[key], reply)


def test_greedy_generation_equals_transformers(served):
    model, server = served
    rng = np.random.default_rng(3)
    prompts = [rng.integers(5, VOCAB, length) for length in (3, 17, 9)]
    request = pb.GenerateRequest(options=pb.GenerateOptions(max_tokens=24, temperature=0, n=2))
    for index, prompt in enumerate(prompts):
        request.prompts.add(id=str(index), ids=pack_ids(prompt))
    events = list(stub(server).Generate(request))
    assert sorted((event.id, event.index) for event in events) == [(str(p), i) for p in range(3) for i in range(2)]
    for event in events:
        prompt = prompts[int(event.id)]
        with torch.no_grad():
            whole = model.generate(torch.from_numpy(prompt)[None], max_new_tokens=24, do_sample=False)[0]
            expected = model(whole[None]).logits[0].log_softmax(-1)
        ids = unpack_ids(event.ids)
        np.testing.assert_array_equal(ids, whole[len(prompt) :])
        rows = len(prompt) - 1 + np.arange(len(ids))
        np.testing.assert_allclose(unpack_floats(event.logprobs), expected[rows, ids.astype(np.int64)], **TOLERANCE)


def test_a_seed_gives_the_same_tokens_in_any_company(qwen):
    def tokens(count: int) -> dict[tuple[str, int], list[int]]:
        options = pb.GenerateOptions(max_tokens=20, seed=7, n=3, temperature=0.9, top_p=0.95, top_k=50)
        request = pb.GenerateRequest(options=options)
        for index in range(count):
            request.prompts.add(id=str(index), ids=pack_ids([5 + index % 90, 9, 12]))
        return {(event.id, event.index): unpack_ids(event.ids).tolist() for event in stub(qwen).Generate(request)}

    few, many = tokens(4), tokens(200)
    assert few == tokens(4)
    assert all(many[key] == ids for key, ids in few.items())
    assert len(many) == 600
    assert len({tuple(ids) for ids in few.values()}) > 6


def test_a_prompt_with_a_seed_of_its_own_gives_the_same_tokens_in_every_request(qwen):
    prompts = [[5, 9, 12], [7, 7], [5, 9, 12]]
    seeds = [2**64 - 1, 0, 5]

    def tokens(order: list[int], options: dict) -> dict[tuple[str, int], list[int]]:
        body = {
            "prompts": [{"id": str(place), "ids": prompts[place], "seed": seeds[place]} for place in order],
            "options": {"max_tokens": 12, "n": 2, **options},
        }
        by_json = httpx.post(f"{qwen.http}/v1/generate", json=body).json()["events"]
        request = pb.GenerateRequest(options=pb.GenerateOptions(**body["options"]))
        for prompt in body["prompts"]:
            request.prompts.add(id=prompt["id"], ids=pack_ids(prompt["ids"]), seed=prompt["seed"])
        by_grpc = {(event.id, event.index): unpack_ids(event.ids).tolist() for event in stub(qwen).Generate(request)}
        assert {(event["id"], event["index"]): event["ids"] for event in by_json} == by_grpc
        return by_grpc

    whole = tokens([0, 1, 2], {})
    assert tokens([2, 1, 0], {"seed": 3}) == whole
    alone = {key: ids for place in range(3) for key, ids in tokens([place], {}).items()}
    assert alone == whole
    assert whole["0", 0] != whole["2", 0]
    assert whole["0", 0] != whole["0", 1]
    request = pb.GenerateRequest(options=pb.GenerateOptions(max_tokens=12, n=2, seed=5))
    request.prompts.add(id="2", ids=pack_ids(prompts[2]))
    of_the_request = {(event.id, event.index): unpack_ids(event.ids).tolist() for event in stub(qwen).Generate(request)}
    assert of_the_request == tokens([2], {})


def test_every_face_gives_the_same_numbers(qwen):
    request = ragged(11)
    request.options.ranks = True
    by_grpc = stub(qwen).Score(request)
    body = httpx.post(f"{qwen.http}/v1/score", content=request.SerializeToString(), headers=PROTOBUF)
    by_protobuf = pb.ScoreReply.FromString(body.content)
    json_request = {
        "prompts": [{"ids": unpack_ids(prompt.ids).tolist()} for prompt in request.prompts],
        "completions": [],
        "options": {"temperature": 0.7, "top_k": 5, "entropy": True, "ranks": True},
    }
    for item in request.completions:
        ends = np.cumsum(unpack_ids(item.candidates.counts))[:-1]
        candidates = [part.tolist() for part in np.split(unpack_ids(item.candidates.ids), ends)]
        json_request["completions"].append(
            {"id": item.id, "prompt": item.prompt, "ids": unpack_ids(item.ids).tolist(), "candidates": candidates}
        )
    by_json = httpx.post(f"{qwen.http}/v1/score", json=json_request).json()["scores"]
    for item, one, two, three in zip(request.completions, by_grpc.scores, by_protobuf.scores, by_json, strict=True):
        ids = unpack_ids(item.ids).tolist()
        assert two.cached
        two.cached = one.cached
        assert one.SerializeToString() == two.SerializeToString()
        assert unpack_floats(one.logprobs).tolist() == pytest.approx(three["logprobs"], abs=1e-6)
        ranks = unpack_ids(one.ranks).tolist()
        assert ranks == three["ranks"]
        assert [rank for rank in ranks if rank <= 5] == [
            top.index(index) + 1 for top, index in zip(three["top_ids"], ids, strict=True) if index in top
        ]
        assert unpack_floats(one.candidate_logprobs).tolist() == pytest.approx(
            np.concatenate(three["candidate_logprobs"])
        )


def test_messages_are_rendered_and_streamed(qwen):
    request = {
        "prompts": [{"messages": [{"role": "user", "content": "1+1"}]}],
        "options": {"max_tokens": 5, "temperature": 0, "stream_tokens": True},
        "stream": True,
    }
    with httpx.stream("POST", f"{qwen.http}/v1/generate", json=request) as response:
        lines = [httpx.Response(200, content=line).json() for line in response.iter_lines()]
    assert len(lines) == sum(len(line["ids"]) for line in lines)
    assert lines[-1]["finished"]
    assert lines[-1]["prompt_ids"] == [4, 23, 17, 23, 1, 5]


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        ({"ids": [3, VOCAB]}, "completions[0].ids", f"[1] is {VOCAB}"),
        ({"ids": [-1]}, "completions[0].ids", "is -1"),
        ({"ids": []}, "completions[0].ids", "empty"),
        ({"prompt": 3}, "completions[0].prompt", "is 3"),
        ({"prompt": 1}, "prompts[1].ids", "empty"),
        ({"ids": [7] * 600}, "completions[0].ids", "at most 512"),
        ({"candidates": [[1]] * 5}, "completions[0].candidates.counts", "5 entries"),
        ({"candidates": [[VOCAB]]}, "completions[0].candidates.ids", f"is {VOCAB}"),
    ],
)
def test_a_bad_item_has_its_own_status(qwen, change, field, text):
    good = {"id": "good", "prompt": 0, "ids": [4, 5]}
    body = {
        "prompts": [{"ids": [1, 2]}, {"ids": []}],
        "completions": [{"id": "bad", "prompt": 0, "ids": [3]} | change, good],
    }
    bad, fine = httpx.post(f"{qwen.http}/v1/score", json=body).json()["scores"]
    assert bad["status"]["code"] == "INVALID_ARGUMENT"
    assert bad["status"]["field"] == field
    assert text in bad["status"]["message"]
    assert len(fine["logprobs"]) == 2


@pytest.mark.parametrize(
    ("request_fields", "code", "status"),
    [
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, 404),
        ({"expect_weights_fingerprint": "ff"}, grpc.StatusCode.FAILED_PRECONDITION, 409),
        ({"options": pb.ScoreOptions(temperature=0)}, grpc.StatusCode.INVALID_ARGUMENT, 422),
        ({"options": pb.ScoreOptions(temperature=-1)}, grpc.StatusCode.INVALID_ARGUMENT, 422),
        ({"options": pb.ScoreOptions(top_k=VOCAB + 1)}, grpc.StatusCode.INVALID_ARGUMENT, 422),
        ({"completions": []}, grpc.StatusCode.INVALID_ARGUMENT, 422),
    ],
)
def test_a_bad_request_fails_alike_on_both_faces(qwen, request_fields, code, status):
    good = {"prompts": [pb.Prompt(ids=pack_ids([1]))], "completions": [pb.Completion(ids=pack_ids([2]))]}
    request = pb.ScoreRequest(**(good | request_fields))
    with pytest.raises(grpc.RpcError) as raised:
        stub(qwen).Score(request)
    assert raised.value.code() == code
    response = httpx.post(f"{qwen.http}/v1/score", content=request.SerializeToString(), headers=PROTOBUF)
    assert response.status_code == status
    assert status_pb2.Status.FromString(response.content).message == raised.value.details()


def generating(server: Server) -> float:
    text = httpx.get(f"{server.http}/metrics").text
    return float(text.split("\nvold_teacher_generate_requests ")[1].split("\n")[0])


def wait_for(server: Server, value: float) -> None:
    while generating(server) != value:
        time.sleep(0.02)


@pytest.mark.parametrize("face", ["grpc", "json", "ndjson"])
def test_a_caller_that_leaves_stops_its_generation(qwen, face):
    options = pb.GenerateOptions(max_tokens=400, n=200, temperature=1)
    if face == "grpc":
        request = pb.GenerateRequest(prompts=[pb.GeneratePrompt(ids=pack_ids([7]))] * 50, options=options)
        call = stub(qwen).Generate(request)
        wait_for(qwen, 1)
        call.cancel()
    else:
        body = {
            "prompts": [{"ids": [7]}] * 50,
            "options": {"max_tokens": 400, "n": 40},
            "stream": face == "ndjson",
        }
        client = httpx.Client(timeout=1.0)

        def leave() -> None:
            with pytest.raises(httpx.TimeoutException):
                client.post(f"{qwen.http}/v1/generate", json=body)

        if face == "json":
            thread = threading.Thread(target=leave)
            thread.start()
            thread.join()
        else:
            with client.stream("POST", f"{qwen.http}/v1/generate", json=body, timeout=30) as response:
                next(response.iter_lines())
        client.close()
    wait_for(qwen, 0)
    reply = stub(qwen).Score(ragged(1))
    assert len(reply.scores) == 14


def test_health_tokenizer_and_models(qwen):
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(qwen.grpc))
    state = health.Check(health_pb2.HealthCheckRequest(service="vold.v1.TeacherService")).status
    assert state == health_pb2.HealthCheckResponse.SERVING
    info = stub(qwen).GetInfo(pb.GetInfoRequest())
    assert (info.vocab_size, info.tokenizer_size, list(info.eos_ids)) == (VOCAB, 101, [1])
    assert stub(qwen).GetTokenizer(pb.GetTokenizerRequest()).identity == info.identity
    assert httpx.get(f"{qwen.http}/v1/info").json()["identity"]["model"] == "tiny"
    assert httpx.get(f"{qwen.http}/v1/models").json()["data"][0]["id"] == "tiny"
    assert httpx.get(f"{qwen.http}/readyz").status_code == 200
    assert "/v1/score" in httpx.get(f"{qwen.http}/openapi.json").json()["paths"]
