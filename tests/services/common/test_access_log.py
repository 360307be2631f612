"""The access record of each request: its id on the reply, a line in the log, and the count of refusals."""

import json

import grpc
import httpx
import pytest
from teacher_fixtures import save_model, teacher_server
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_proto.v1 import teacher_pb2_grpc

JSON = {"prompts": [{"ids": [5, 6]}], "completions": [{"ids": [7, 8, 9]}]}
SECRET = "sk-very-secret"


def message(request_id: str = "", **fields: object) -> pb.ScoreRequest:
    prompts, completions = [pb.Prompt(ids=pack_ids([5, 6]))], [pb.Completion(ids=pack_ids([7, 8, 9]))]
    return pb.ScoreRequest(**({"request_id": request_id, "prompts": prompts, "completions": completions} | fields))


def count(text: str, sample: str) -> float:
    line = next((line for line in text.splitlines() if line.startswith(sample + " ")), f"{sample} 0")
    return float(line.rpartition(" ")[2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


def test_every_request_has_an_id_a_line_and_a_count(folder, tmp_path):
    with (
        (tmp_path / "log").open("w") as stderr,
        teacher_server(
            folder, "--log-format", "json", "--log-level", "debug", "--cache-bytes", "0", log=stderr
        ) as server,
    ):
        stub = teacher_pb2_grpc.TeacherServiceStub(grpc.insecure_channel(server.grpc))
        key = {"authorization": f"Bearer {SECRET}", "x-vold-run-id": "run-7"}
        generated_id = httpx.post(f"{server.http}/v1/score", json=JSON, headers=key).headers["x-request-id"]
        assert generated_id
        named = httpx.post(
            f"{server.http}/v1/score", json=JSON | {"request_id": "é mine"}, headers={"x-request-id": "x"}
        )
        assert named.headers["x-request-id"] == "? mine", (
            "the message's id wins, with the characters that a header allows"
        )
        assert named.json()["request_id"] == "é mine"
        assert httpx.get(f"{server.http}/healthz").headers["x-request-id"]
        missing = httpx.get(f"{server.http}/nowhere", headers={"x-request-id": "lost"})
        assert (missing.status_code, missing.headers["x-request-id"]) == (404, "lost")
        _, call = stub.Score.with_call(message("by-grpc"))
        assert dict(call.trailing_metadata())["x-request-id"] == "by-grpc"
        _, call = stub.Score.with_call(message(), metadata=(("x-request-id", "by-metadata"),))
        assert dict(call.trailing_metadata())["x-request-id"] == "by-metadata"
        with pytest.raises(grpc.RpcError) as raised:
            stub.Score(message("wrong", options=pb.ScoreOptions(top_k=10**6)))
        assert dict(raised.value.trailing_metadata())["x-request-id"] == "wrong"
        stream = [message("s1"), message("s2", options=pb.ScoreOptions(temperature=-1))]
        assert len(list(stub.ScoreStream(iter(stream)))) == 2
        sampled = list(
            stub.Generate(
                pb.GenerateRequest(
                    request_id="sample",
                    prompts=[pb.GeneratePrompt(ids=pack_ids([5]))],
                    options=pb.GenerateOptions(max_tokens=4),
                )
            )
        )
        metrics = httpx.get(f"{server.http}/metrics").text
        # After the figures: how far the service comes with it before it is cancelled is a matter of chance.
        with pytest.raises(grpc.RpcError):
            stub.Score(message("late"), timeout=1e-9)

    text = (tmp_path / "log").read_text()
    assert SECRET not in text
    lines = [json.loads(line) for line in text.splitlines()]
    access = {line["request_id"]: line for line in lines if line["logger"] == "vold.access"}
    http = access[generated_id]
    assert (http["face"], http["method"], http["code"]) == ("http", "POST /v1/score", "OK")
    assert (http["tenant"], http["run_id"], http["tokens"], http["level"]) == ("open", "run-7", 3, "debug")
    assert 0 < http["compute_seconds"] <= http["seconds"]
    assert access["é mine"]["code"] == "OK"
    assert (access["lost"]["code"], access["lost"]["level"]) == ("NOT_FOUND", "info")
    assert (access["by-grpc"]["method"], access["by-grpc"]["tokens"]) == ("Score", 3)
    assert access["by-metadata"]["code"] == "OK"
    wrong = access["wrong"]
    assert (wrong["code"], wrong["reason"], wrong["field"]) == ("INVALID_ARGUMENT", "invalid", "options.top_k")
    assert (access["s1"]["method"], access["s1"]["code"]) == ("ScoreStream/request", "OK")
    assert access["s2"]["reason"] == "invalid"
    assert access["sample"]["tokens"] == sum(len(event.ids) // 4 for event in sampled) > 0
    assert access.get("late", {}).get("code") != "INTERNAL"
    assert not [line for line in lines if line.get("method") == "GET /healthz"]

    assert count(metrics, 'vold_rejected_requests_total{face="grpc",reason="invalid"}') == 2
    assert count(metrics, 'vold_rejected_requests_total{face="http",reason="not_found"}') == 1
    ok = 'vold_tenant_requests_total{code="OK",tenant="open"}'
    assert count(metrics, ok) == 6
    assert count(metrics, 'vold_teacher_tenant_tokens_total{tenant="open",work="scored"}') == 5 * 3
    assert count(metrics, "vold_teacher_scored_tokens_total") == 5 * 3
    stages = {
        stage: count(metrics, f'vold_teacher_stage_seconds_count{{stage="{stage}"}}')
        for stage in ("parse", "queue", "compute", "serialize", "total")
    }
    assert set(stages.values()) == {5}, stages


def test_text_lines_keep_a_callers_id_in_one_field(folder, tmp_path):
    with (tmp_path / "log").open("w") as stderr, teacher_server(folder, "--log-level", "info", log=stderr) as server:
        forged = 'a code=OK tenant="root"'
        bad = JSON | {"options": {"top_k": 10**6}, "request_id": forged + "\nINFO forged"}
        assert httpx.post(f"{server.http}/v1/score", json=bad).status_code == 422
        assert httpx.post(f"{server.http}/v1/score", json=JSON).status_code == 200
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "vold.access" in line]
    assert len(lines) == 1, "a successful request has no line at level info"
    assert "request_id=" + json.dumps(bad["request_id"]) in lines[0]
    assert " code=INVALID_ARGUMENT reason=invalid field=options.top_k " in lines[0]
