"""The verifier as a process: both faces, health, limits, signals, and that no process outlives it."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import grpc
import httpx
import psutil
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from verifier_server import item, running
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_verifier.engine.forkclient import ForkServerProcess
from vold_verifier.engine.options import main_options
from vold_verifier.settings import VerifierSettings

MIXED = [
    item("numeric", r"\boxed{1,000}", "1000", "a"),
    item("math", r"<think>\boxed{9}</think>\boxed{x+1}", "1+x", "b"),
    item("choice", "The answer is (B)", "B", "c"),
    item("choice", "Rome", "B", "d", options={"A": "Paris", "B": "Rome"}),
    item("exact", "paris", "Paris", "e"),
    item("format", "<think>a</think><answer>b</answer>", "", "f"),
    item("math", "<think>never ends", "4", "g"),
]
REWARDS = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def server():
    with running(
        "--workers", "2", "--time-limit", "0.5", "--max-items", "300", "--max-completion-chars", "1000"
    ) as server:
        yield server


def to_json(item: verifier_pb2.VerifyItem) -> dict:
    body = {"id": item.id, "verifier": item.verifier, "completion": item.completion, "reference": item.reference}
    if item.HasField("parameters"):
        body["parameters"] = MessageToDict(item.parameters)
    return body


def test_the_faces_give_the_same_results_in_order(server):
    by_grpc = server.verify(*MIXED)
    request = verifier_pb2.VerifyRequest(request_id="r1", items=MIXED)
    protobuf = {"content-type": "application/x-protobuf"}
    reply = httpx.post(f"{server.url}/v1/verify", content=request.SerializeToString(), headers=protobuf)
    assert reply.headers["content-type"] == "application/x-protobuf"
    by_protobuf = verifier_pb2.VerifyReply.FromString(reply.content)
    assert by_protobuf.request_id == "r1"
    by_json = httpx.post(f"{server.url}/v1/verify", json={"items": [to_json(each) for each in MIXED]}).json()["results"]

    assert [result.reward for result in by_grpc] == REWARDS
    assert [result.id for result in by_grpc] == list("abcdefg")
    assert [result.rule for result in by_grpc] == [""] * 6 + ["unclosed_tag"]
    for grpc_result, protobuf_result, json_result in zip(by_grpc, by_protobuf.results, by_json, strict=True):
        for result in (grpc_result, protobuf_result):
            result.seconds, result.cached = 0, False
        assert grpc_result == protobuf_result
        assert (grpc_result.id, grpc_result.reward, grpc_result.correct, grpc_result.reason, grpc_result.rule) == (
            json_result["id"],
            json_result["reward"],
            json_result["correct"],
            json_result["reason"],
            json_result["rule"],
        )
        assert (grpc_result.extracted if grpc_result.HasField("extracted") else None) == json_result["extracted"]
        assert json_result["error"] is None


def test_a_stream_answers_every_item_by_id(server):
    items = [item("numeric", str(n), str(n - n % 2), str(n)) for n in range(600)]
    results = {result.id: result.reward for result in server.stub.VerifyStream(iter(items), timeout=60)}
    assert results == {str(n): float(n % 2 == 0) for n in range(600)}


def test_a_stream_gives_results_before_it_ends(server):
    more = threading.Event()

    def items():
        yield item("numeric", "1", "1", "first")
        assert more.wait(30)
        yield item("nothing", "1", "1", "second")

    stream = server.stub.VerifyStream(items(), timeout=60)
    assert next(stream).id == "first"
    more.set()
    assert next(stream).error.code == status_pb2.NOT_FOUND
    with pytest.raises(StopIteration):
        next(stream)


def test_items_that_cannot_be_verified_have_errors_and_the_others_rewards(server):
    results = server.verify(
        item("numeric", "1", "1"),
        item("nmeric", "1", "1"),
        item("numeric", "1", "many"),
        item("numeric", "1", "1", relative_tolerance="much"),
        item("numeric", "1", "1", relative_tolerence=0.1),
        item("numeric", "1" * 1001, "1"),
        item("spin"),
        item("crash"),
        item("numeric", "1", "1"),
    )
    errors = [(status_pb2.Code.Name(result.error.code), result.error.field) for result in results]
    assert errors == [
        ("OK", ""),
        ("NOT_FOUND", "items[1].verifier"),
        ("INVALID_ARGUMENT", "items[2].reference"),
        ("INVALID_ARGUMENT", "items[3].parameters.relative_tolerance"),
        ("INVALID_ARGUMENT", "items[4].parameters.relative_tolerence"),
        ("INVALID_ARGUMENT", "items[5].completion"),
        ("DEADLINE_EXCEEDED", ""),
        ("INTERNAL", ""),
        ("OK", ""),
    ]
    assert "did you mean 'numeric'" in results[1].error.message
    assert "'much'" in results[3].error.message
    assert [result.HasField("reward") for result in results] == [True, *[False] * 7, True]


def test_verifiers_are_listed_with_schemas(server):
    reply = server.stub.ListVerifiers(verifier_pb2.ListVerifiersRequest())
    by_name = {info.name: json.loads(info.parameters_schema) for info in reply.verifiers}
    assert {"math", "numeric", "choice", "exact", "format", "sleep"} <= set(by_name)
    assert "relative_tolerance" in by_name["numeric"]["properties"]
    assert reply.time_limit_seconds == 0.5
    listed = httpx.get(f"{server.url}/v1/verifiers").json()
    assert [info["name"] for info in listed["verifiers"]] == [info.name for info in reply.verifiers]


def test_a_request_with_too_many_items_is_refused(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.verify(*[MIXED[0]] * 301)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "limit of 300" in caught.value.details()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b'{"itms": []}', "items"),
        (b'{"items": {}}', "items"),
        (b'{"request_id": 3, "items": []}', "request_id"),
    ],
)
def test_malformed_json_names_the_field(server, body, field):
    reply = httpx.post(f"{server.url}/v1/verify", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert reply.json()["error"]["field"] == field


def test_an_empty_request_has_an_empty_reply(server):
    assert server.verify() == []


def test_a_deadline_ends_the_call(server):
    slow = [item("sleep", str(n), seconds=0.3) for n in range(40)]
    with pytest.raises(grpc.RpcError) as caught:
        server.verify(*slow, timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    body = {"items": [to_json(each) for each in slow]}
    reply = httpx.post(f"{server.url}/v1/verify", json=body, headers={"x-vold-timeout-seconds": "0.5"})
    assert reply.status_code == 504


def queued(server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith("vold_verifier_queued_items ")))


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.02)


def test_the_queued_items_of_a_caller_that_left_are_dropped(server):
    slow = [item("sleep", str(n), seconds=0.3) for n in range(250)]
    call = server.stub.Verify.future(verifier_pb2.VerifyRequest(items=slow))
    wait_for(lambda: queued(server) > 200)
    call.cancel()
    wait_for(lambda: queued(server) == 0)

    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/verify", json={"items": [to_json(each) for each in slow]}, timeout=1)
    wait_for(lambda: queued(server) == 0)


def test_health_reflection_and_metrics(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "vold.v1.VerifierService"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    (reply,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert "vold.v1.VerifierService" in {service.name for service in reply.list_services_response.service}
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200

    server.verify(item("numeric", "1", "1"), item("numeric", "1", "2"), item("unheard_of"), item("crash"))
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'vold_verifier_items_total{outcome="correct",verifier="numeric"}' in metrics
    assert 'vold_verifier_items_total{outcome="wrong",verifier="numeric"}' in metrics
    assert 'vold_verifier_items_total{outcome="NOT_FOUND",verifier="unknown"}' in metrics
    assert 'vold_verifier_worker_restarts_total{reason="signal SIGSEGV"}' in metrics


def test_requests_in_flight_finish_after_sigterm(tmp_path):
    with running("--workers", "1", grpc_address=f"unix:{tmp_path}/verifier.sock") as server:
        processes = server.descendants()
        items = [item("sleep", str(n), seconds=0.5) for n in range(3)]
        call = server.stub.Verify.future(verifier_pb2.VerifyRequest(items=items))
        wait_for(lambda: queued(server) > 0)
        server.process.send_signal(signal.SIGTERM)
        assert [result.reward for result in call.result(timeout=60).results] == [1.0] * 3
        assert server.process.wait(60) == 0
        assert not psutil.wait_procs(processes, timeout=10)[1]
        assert not (tmp_path / "verifier.sock").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--plugin=nowhere_at_all", "error: plugin 'nowhere_at_all': No module named"),
        ("--enable=magic", "--enable magic"),
    ],
)
def test_a_start_that_fails_says_why_in_one_line(option, message):
    """Its fork server, which was launched before the service knew, says nothing more."""
    command = [sys.executable, "-m", "vold_verifier", "serve", "--http=127.0.0.1:0", "--grpc=none", option]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr


@pytest.mark.parametrize("plugins", [("nowhere_at_all",), ()], ids=["has an error to tell", "is ready"])
def test_a_fork_server_whose_service_has_gone_says_nothing(plugins, capfd):
    """The kernel closes a service's files before it ends the fork server."""
    options = replace(main_options(VerifierSettings()).of_fork_server(), plugins=plugins)
    launched = ForkServerProcess.launch(options)
    launched.control.close()
    assert launched.process.wait(60) == 0
    assert not capfd.readouterr().err


def test_no_process_outlives_a_killed_server():
    with running("--workers", "2", "--time-limit", "60") as server:
        processes = server.descendants()
        assert len(processes) == 4  # the fork server and its workers, and the server of forks for long work on requests
        call = server.stub.Verify.future(verifier_pb2.VerifyRequest(items=[item("spin"), item("stubborn")]))
        busy_from = [sum(process.cpu_times()[:2]) for process in processes]
        wait_for(lambda: any(sum(p.cpu_times()[:2]) > was + 0.1 for p, was in zip(processes, busy_from, strict=True)))
        assert not call.done()
        server.process.kill()
        assert not psutil.wait_procs(processes, timeout=10)[1]
