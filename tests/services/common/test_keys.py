"""API keys, quotas and usage at real servers, on both faces."""

import asyncio
import base64
import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from known_keys import known_key
from teacher_fixtures import save_model, teacher_server
from typer.testing import CliRunner
from verifier_server import running
from vold_client import (
    AsyncTeacherClient,
    AsyncVerifierClient,
    Completion,
    InvalidArgument,
    Item,
    PermissionDenied,
    Quota,
    ResourceExhausted,
    ScoreRequest,
    TeacherClient,
    Unauthenticated,
    VerifierClient,
)
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_proto.v1 import teacher_pb2_grpc, verifier_pb2
from vold_service.app import make_app
from vold_service.keys import Keys, KeysError, digest_of, outgoing_key
from vold_service.processes import Processes
from vold_teacher.cli import app as teacher_cli
from vold_teacher.factory import make_backend
from vold_teacher.http import add_routes
from vold_teacher.server import make_teacher
from vold_teacher.settings import TeacherSettings
from vold_trainer.config import VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.services.local import open_services, verifier_client
from vold_verifier.cli import app as verifier_cli
from vold_verifier.engine.engine import Engine
from vold_verifier.http import create_app
from vold_verifier.settings import VerifierSettings

NAMES = ("ops", "maths", "bound", "slow", "spent", "single", "short", "expired", "mortal", "later")
KEY = {name: known_key(name) for name in NAMES}
WRONG = known_key("wrong")
OPEN_PATHS = {"/healthz", "/readyz"}
PROMPT, COMPLETION = [5, 6], Completion(0, [7, 8, 9])


def entry(name: str, **more: object) -> dict[str, object]:
    return {"sha256": digest_of(KEY[name]).hex(), **more}


def tenants() -> list[dict[str, object]]:
    return [
        {"name": "ops", "admin": True, "keys": [entry("ops")]},
        {
            "name": "maths",
            "keys": [entry("maths"), entry("bound", run_id="beta-low"), entry("expired", expires="2020-01-01")],
        },
        {"name": "slow", "tokens_per_minute": 1200, "keys": [entry("slow")]},
        {"name": "spent", "tokens_per_minute": 60, "keys": [entry("spent")]},
        {"name": "single", "max_concurrent": 1, "keys": [entry("single")]},
        {"name": "short", "max_sequence": 6, "keys": [entry("short")]},
        {"name": "mortal", "keys": [entry("mortal")]},
    ]


def write(file: Path, listed: list[dict[str, object]]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"tenants": listed}))
    os.replace(fresh, file)


@dataclass
class Service:
    """http, grpc: URLs. address: of the gRPC face, for a channel."""

    http: str
    grpc: str
    address: str
    pid: int
    file: Path
    log: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("keys")
    write(place / "keys.yaml", tenants())
    options = ["--api-keys", str(place / "keys.yaml"), "--log-level", "debug", "--max-sequences", "8"]
    with (place / "log").open("w") as log, teacher_server(folder, *options, log=log) as server:
        yield Service(
            server.http, f"grpc://{server.grpc}", server.grpc, server.process.pid, place / "keys.yaml", place / "log"
        )
    check_log(place / "log")


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    place = tmp_path_factory.mktemp("keys")
    write(place / "keys.yaml", tenants())
    options = ["--api-keys", str(place / "keys.yaml"), "--log-level", "debug", "--workers", "1"]
    with (place / "log").open("w") as log, running(*options, log=log) as server:
        address = server.ready["grpc"]
        yield Service(server.url, f"grpc://{address}", address, server.process.pid, place / "keys.yaml", place / "log")
    check_log(place / "log")


def check_log(log: Path) -> None:
    """The debug log of all requests of this module contains no key."""
    text = log.read_text()
    assert "vold" in text
    for key in [*KEY.values(), WRONG]:
        assert key not in text
        assert key.removeprefix("vold_") not in text
        assert base64.b64encode(f"me:{key}".encode()).decode() not in text


@pytest.fixture(params=["http", "grpc"])
def url(request, teacher):
    return getattr(teacher, request.param)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def score(url: str, key: str | None, **options: object) -> None:
    with TeacherClient(url, api_key=key, retries=0, **options) as client:
        assert client.score([PROMPT], [COMPLETION]).scores[0].error is None


def until(condition) -> None:
    while not condition():
        time.sleep(0.05)


def test_a_valid_key_is_accepted(url):
    score(url, KEY["maths"])


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, ["wants an API key", "Bearer KEY", "api_key_env"]),
        (WRONG, ["not one of this service's"]),
        (KEY["expired"], ["expired on 2020-01-01"]),
    ],
)
def test_a_missing_a_wrong_and_an_expired_key_are_refused(url, key, words):
    with pytest.raises(Unauthenticated) as caught:
        score(url, key)
    for word in words:
        assert word in caught.value.message
    assert not key or key not in str(caught.value)


def test_a_wrong_key_shows_while_a_caller_waits_for_the_service(url):
    with TeacherClient(url, api_key=WRONG) as client, pytest.raises(Unauthenticated):
        client.ready(5)
    with TeacherClient(url, api_key=KEY["maths"]) as client:
        client.ready(5)


def routes(app) -> set[tuple[str, str]]:
    """(method, path) of all routes of an app, including those that are not in the schema."""
    method_paths = {
        (method, route.path)
        for route in app.routes
        if hasattr(route, "path")
        for method in getattr(route, "methods", None) or {"GET"}
    }
    method_paths |= {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    return {(method, re.sub(r"\{(\w+)(?::\w+)?\}", r"\1", path)) for method, path in method_paths}


def check_routes(service: Service, app, own: set[tuple[str, str]], openai: frozenset[str] = frozenset()) -> None:
    """own: routes that the app has beside those of every service. openai: paths with OpenAI's errors."""
    method_paths = routes(app)
    common = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/quota"}
    assert method_paths >= own | {("GET", path) for path in common}
    with httpx.Client(base_url=service.http) as client:
        for method, path in [*method_paths, ("GET", "/nothing"), ("POST", "/healthz/../metrics")]:
            for headers in ({}, bearer(WRONG), {"authorization": KEY["maths"]}):
                if path == "/healthz" or (path == "/readyz" and not headers):
                    assert client.request(method, path, headers=headers).status_code == 200
                    continue
                reply = client.request(method, path, headers=headers)
                assert reply.status_code == 401, f"{method} {path} answers without a key: {reply.text[:200]}"
                if method != "HEAD":
                    error = reply.json()["error"]
                    if path in openai:
                        assert (error["code"], error["type"]) == ("unauthenticated", "authentication_error")
                        assert set(error) == {"message", "type", "param", "code"}
                    else:
                        assert error["code"] == "UNAUTHENTICATED", path
                assert reply.headers["www-authenticate"].startswith("Basic ")
        for path in ("/metrics", "/docs", "/openapi.json", "/readyz"):
            assert client.get(path, headers=bearer(KEY["maths"])).status_code == 200


def test_every_route_of_the_teacher_is_guarded(teacher, folder):
    app = make_app("teacher", max_body_bytes=1024, ready=lambda: True, keys=Keys())
    add_routes(app, make_teacher(TeacherSettings(model=folder), Processes()))
    own = {
        ("GET", "/v1/info"),
        *(("POST", f"/v1/{name}") for name in ("score", "generate", "models/load", "models/unload")),
    }
    openai = {"/v1/models", "/v1/models/name", "/v1/completions", "/v1/chat/completions"}
    openai |= {"/tokenize", "/detokenize", "/tokenizer_info", "/health"}
    assert openai < {path for _, path in routes(app)}
    check_routes(teacher, app, own, frozenset(openai))
    assert httpx.get(f"{teacher.http}/v1/nothing").json()["error"]["code"] == "unauthenticated"


def test_every_route_of_the_verifier_is_guarded(verifier):
    engine = Engine(VerifierSettings(workers=1))
    app = create_app(engine, max_body_bytes=1024, ready=lambda: True, keys=Keys())
    check_routes(verifier, app, {("GET", "/v1/verifiers"), ("POST", "/v1/verify")})


@pytest.mark.parametrize(("name", "module"), [("teacher", pb), ("verifier", verifier_pb2)])
def test_every_method_is_guarded_but_health(request, name, module):
    service = request.getfixturevalue(name)
    (described,) = module.DESCRIPTOR.services_by_name.values()
    assert len(described.methods) >= 3
    with grpc.insecure_channel(service.address) as channel:
        paths = [f"/{described.full_name}/{method.name}" for method in described.methods]
        for path in [*paths, f"/{described.full_name}/Nothing"]:
            for metadata in (None, [("authorization", f"Bearer {WRONG}")]):
                # A stream without messages: the refusal does not wait for one.
                silent = threading.Event()
                call = channel.stream_stream(path)(iter(silent.wait, True), metadata=metadata, timeout=30)
                with pytest.raises(grpc.RpcError) as caught:
                    next(call)
                silent.set()
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, path
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=described.full_name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_basic_authentication_is_accepted_on_get_only(teacher):
    with httpx.Client(base_url=teacher.http, auth=("me", KEY["maths"])) as client:
        assert client.get("/metrics").status_code == 200
        body = {"prompts": [{"ids": PROMPT}], "completions": [{"ids": [7]}]}
        assert client.post("/v1/score", json=body).status_code == 401
    assert httpx.get(f"{teacher.http}/metrics", auth=("me", WRONG)).status_code == 401


def test_the_file_is_read_again_while_the_server_runs(teacher):
    listed = tenants()
    try:
        score(teacher.grpc, KEY["mortal"])
        with pytest.raises(Unauthenticated):
            score(teacher.grpc, KEY["later"])
        write(teacher.file, [*listed[:-1], {"name": "later", "keys": [entry("later")]}])
        for address in (teacher.http, teacher.grpc):
            until(lambda address=address: accepts(address, KEY["later"]))
            assert not accepts(address, KEY["mortal"])
        teacher.file.write_text(f"tenants: [{KEY['maths']}]")
        os.kill(teacher.pid, signal.SIGHUP)
        until(lambda: "stay as they were" in teacher.log.read_text())
        score(teacher.grpc, KEY["later"])
    finally:
        write(teacher.file, listed)
        os.kill(teacher.pid, signal.SIGHUP)
    until(lambda: not accepts(teacher.http, KEY["later"]))
    score(teacher.http, KEY["mortal"])


def accepts(url: str, key: str) -> bool:
    try:
        score(url, key)
    except Unauthenticated:
        return False
    return True


def test_a_removed_key_fails_the_next_request_of_its_stream(teacher):
    listed = tenants()

    def requests():
        yield ScoreRequest([PROMPT], [COMPLETION], request_id="before")
        served.wait(30)
        write(teacher.file, listed[:-1])
        os.kill(teacher.pid, signal.SIGHUP)
        until(lambda: not accepts(teacher.http, KEY["mortal"]))
        yield ScoreRequest([PROMPT], [COMPLETION], request_id="after")

    served = threading.Event()
    results = {}
    try:
        with TeacherClient(teacher.grpc, api_key=KEY["mortal"], retries=0, max_in_flight=1) as client:
            for result in client.score_stream(requests()):
                results[result.request_id] = result.error
                served.set()
    finally:
        write(teacher.file, listed)
        os.kill(teacher.pid, signal.SIGHUP)
    assert results["before"] is None
    assert isinstance(results["after"], Unauthenticated)
    until(lambda: accepts(teacher.http, KEY["mortal"]))


def usage(url: str, key: str) -> dict[tuple[str, str], object]:
    with TeacherClient(url, api_key=KEY[key]) as client:
        return {(row.tenant, row.run_id): row for row in client.usage()}


def test_usage_is_by_tenant_and_run_and_the_keys_run_wins(teacher, url):
    before = usage(url, "ops")
    for key in ("maths", "bound"):
        score(url, KEY[key], run_id="named-by-caller")
    with TeacherClient(url, api_key=KEY["bound"], run_id="x") as client:
        (generation,) = client.generate([PROMPT], max_tokens=4, seed=1)
    after = usage(url, "ops")

    def grew(run: str, field: str) -> float:
        known = before.get(("maths", run))
        return getattr(after["maths", run], field) - (getattr(known, field) if known else 0)

    assert grew("named-by-caller", "requests") == 1
    assert grew("named-by-caller", "scored_tokens") == 3
    assert grew("beta-low", "requests") == 2
    assert grew("beta-low", "scored_tokens") == 3
    assert grew("beta-low", "generated_tokens") == len(generation.ids)
    assert ("maths", "x") not in after
    assert {tenant for tenant, _ in usage(url, "maths")} == {"maths"}
    assert {tenant for tenant, _ in after} >= {"maths", "mortal"}
    with TeacherClient(url, api_key=KEY["ops"]) as client:
        assert {row.tenant for row in client.usage("maths")} == {"maths"}
    with TeacherClient(url, api_key=KEY["maths"]) as client:
        assert {row.tenant for row in client.usage("maths")} == {"maths"}
        with pytest.raises(PermissionDenied, match="administrators"):
            client.usage("ops")


def test_usage_as_json(teacher):
    score(teacher.http, KEY["maths"], run_id="json")
    reply = httpx.get(f"{teacher.http}/v1/usage", headers=bearer(KEY["maths"])).json()
    (row,) = [row for row in reply["usage"] if row["run_id"] == "json"]
    assert set(row) == {field.name for field in pb.Usage.DESCRIPTOR.fields}
    assert (row["tenant"], row["requests"], row["scored_tokens"]) == ("maths", 1, 3)
    assert 0 < time.time() - reply["since"] < 3600


def test_tokens_a_minute_and_the_clients_retry_at_the_suggested_time(teacher):
    """1,200 tokens a minute: 20 a second. A prompt that completions share counts once."""
    work = [[5] * 100], [Completion(0, [7] * 100), Completion(0, [8] * 100)]
    with TeacherClient(teacher.grpc, api_key=KEY["slow"], retries=0) as client:
        for _ in range(4):
            client.score(*work)
        with pytest.raises(ResourceExhausted, match="'slow' has used its 1200 tokens a minute") as caught:
            client.score([[5] * 20], [Completion(0, [7] * 20)])
    assert 0 < caught.value.retry_seconds <= 2
    reply = httpx.post(
        f"{teacher.http}/v1/score",
        headers=bearer(KEY["slow"]),
        json={"prompts": [{"ids": [5] * 20}], "completions": [{"ids": [7] * 20}]},
    )
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 1
    # One retry is enough, so the client did not retry too early.
    with TeacherClient(teacher.grpc, api_key=KEY["slow"], retries=1) as client:
        client.score([[5] * 20], [Completion(0, [7] * 20)])


def test_requests_at_a_time(teacher):
    metadata = [("authorization", f"Bearer {KEY['single']}")]
    with grpc.insecure_channel(teacher.address) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        options = pb.GenerateOptions(n=64, max_tokens=400, stream_tokens=True)
        long = stub.Generate(
            pb.GenerateRequest(prompts=[pb.GeneratePrompt(ids=pack_ids(PROMPT))], options=options), metadata=metadata
        )
        next(long)
        with pytest.raises(ResourceExhausted, match="1 requests under way") as caught:
            score(teacher.http, KEY["single"])
        assert (caught.value.reason, caught.value.retry_seconds > 0) == ("quota", True)
        with TeacherClient(teacher.http, api_key=KEY["single"]) as client:
            assert client.quota().running == 1
        score(teacher.http, KEY["maths"])  # other tenants are not affected
        long.cancel()
    with TeacherClient(teacher.grpc, api_key=KEY["single"], retries=10) as client:
        client.score([PROMPT], [COMPLETION])


def rejected(service: Service) -> Counter[tuple[str, str]]:
    """Refused requests by face and reason, and by tenant and limit."""
    text = httpx.get(f"{service.http}/metrics", headers=bearer(KEY["ops"])).text
    refused = r'^vold_rejected_requests_total{face="(\w+)",reason="(\w+)"} (\S+)$'
    by_limit = r'^vold_tenant_quota_refusals_total{limit="(\w+)",tenant="(\w+)"} (\S+)$'
    rows = re.findall(refused, text, re.M) + re.findall(by_limit, text, re.M)
    return Counter({(first, second): int(float(value)) for first, second, value in rows})


def refused_by_quota(call) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        call()
    assert caught.value.reason == "quota"
    assert caught.value.retry_seconds > 60


def test_a_refusal_by_quota_is_told_and_counted_as_such(teacher):
    with TeacherClient(teacher.grpc, api_key=KEY["spent"], retries=0) as client:
        client.score([[5] * 400], [Completion(0, [7] * 100)] * 8)  # 20 minutes' worth
    before = rejected(teacher)
    for url in (teacher.http, teacher.grpc):
        with TeacherClient(url, api_key=KEY["spent"], retries=0) as client:
            refused_by_quota(lambda client=client: client.score([PROMPT], [COMPLETION]))
            refused_by_quota(lambda client=client: list(client.generate([PROMPT], max_tokens=4)))
            streamed = next(client.score_stream([ScoreRequest([PROMPT], [COMPLETION])])).error
            assert isinstance(streamed, ResourceExhausted)
            assert (streamed.reason, streamed.retry_seconds > 60) == ("quota", True)
    score = {"prompts": [{"ids": PROMPT}], "completions": [{"ids": [7]}]}
    generate = {"prompts": [{"ids": PROMPT}], "options": {"max_tokens": 4}}
    completion = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    posts = [
        ("/v1/score", score),
        ("/v1/generate", generate),
        ("/v1/generate", generate | {"stream": True}),
        ("/v1/completions", completion),
        ("/v1/completions", completion | {"echo": True, "logprobs": 1, "max_tokens": 0}),
        ("/v1/completions", completion | {"prompt_logprobs": 1, "max_tokens": 1}),
        ("/v1/completions", completion | {"stream": True}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
    ]
    with httpx.Client(base_url=teacher.http, headers=bearer(KEY["spent"])) as http:
        for path, body in posts:
            reply = http.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["reason"]) == (429, "quota"), f"{path} {body}"
            assert int(reply.headers["retry-after"]) > 60
    assert rejected(teacher) - before == Counter(
        {("http", "quota"): 3 + len(posts), ("grpc", "quota"): 3, ("tokens_per_minute", "spent"): 6 + len(posts)}
    )
    status = httpx.get(f"{teacher.http}/v1/status", headers=bearer(KEY["ops"])).json()
    assert status["rejected"]["quota"] >= 6 + len(posts)
    lines = [line for line in teacher.log.read_text().splitlines() if "tenant=spent" in line and "EXHAUSTED" in line]
    assert len(lines) == 6 + len(posts)
    assert all("reason=quota" in line for line in lines)
    with TeacherClient(teacher.http, api_key=KEY["spent"]) as client:
        quota = client.quota()
    assert (quota.refused, quota.tokens_left < -1000) == (6 + len(posts), True)


def test_a_refusal_of_the_verifier_by_quota_is_told_and_counted_as_such(verifier):
    item = Item("exact", "so \\boxed{7}", "7")
    with VerifierClient(verifier.grpc, api_key=KEY["spent"], retries=0) as client:
        assert client.verify([Item("exact", "7" * 4_800, "7")])[0].error is None
    before = rejected(verifier)
    for url in (verifier.http, verifier.grpc):
        with VerifierClient(url, api_key=KEY["spent"], retries=0) as client:
            refused_by_quota(lambda client=client: client.verify([item]))
            for verdict in client.verify_stream([item, item]):
                assert isinstance(verdict.error, ResourceExhausted)
                assert (verdict.error.reason, verdict.error.retry_seconds > 60) == ("quota", True)
    body = {"items": [{"verifier": "exact", "completion": "7", "reference": "7"}]}
    reply = httpx.post(f"{verifier.http}/v1/verify", json=body, headers=bearer(KEY["spent"]))
    assert (reply.status_code, reply.json()["error"]["reason"]) == (429, "quota")
    assert rejected(verifier) - before == Counter(
        {("http", "quota"): 4, ("grpc", "quota"): 3, ("tokens_per_minute", "spent"): 7}
    )
    until(lambda: "refused_quota=2" in verifier.log.read_text())


@pytest.mark.parametrize("face", ["http", "grpc"])
def test_a_tenant_reads_its_limits(teacher, verifier, face):
    for service, sync, client_class in (
        (teacher, TeacherClient, AsyncTeacherClient),
        (verifier, VerifierClient, AsyncVerifierClient),
    ):

        async def read(url, client_class=client_class) -> Quota:
            async with client_class(url, api_key=KEY["mortal"]) as client:
                return await client.quota()

        url = getattr(service, face)
        assert asyncio.run(read(url)) == Quota("mortal", None, None, None, None, 0, 0)
        with sync(url, api_key=KEY["short"]) as client:
            assert client.quota() == Quota("short", None, None, 6, None, 0, 0)
        with sync(url, api_key=KEY["single"]) as client:
            assert client.quota().max_concurrent == 1
        with sync(url, api_key=KEY["slow"]) as client:
            quota = client.quota()
        assert (quota.tenant, quota.tokens_per_minute, quota.max_concurrent) == ("slow", 1200, None)
        assert quota.tokens_left <= 1200


def test_limits_as_json(teacher, verifier):
    for service in (teacher, verifier):
        reply = httpx.get(f"{service.http}/v1/quota", headers=bearer(KEY["short"])).json()
        assert reply == {
            "tenant": "short",
            "tokens_per_minute": None,
            "max_concurrent": None,
            "max_sequence": 6,
            "tokens_left": None,
            "running": 0,
            "refused": 0,
        }


def test_the_longest_sequence_of_a_tenant(teacher, url):
    with TeacherClient(url, api_key=KEY["short"]) as client:
        fits, too_long = client.score([PROMPT], [Completion(0, [7] * 4), Completion(0, [7] * 5)]).scores
    assert fits.error is None
    assert isinstance(too_long.error, InvalidArgument)
    assert "the tenant 'short' may send at most 6" in too_long.error.message
    with TeacherClient(url, api_key=KEY["maths"]) as client:
        assert client.score([PROMPT], [Completion(0, [7] * 5)]).scores[0].error is None


def test_a_request_with_too_many_sequences(teacher, url):
    with TeacherClient(url, api_key=KEY["maths"]) as client:
        client.score([PROMPT], [COMPLETION] * 8)
        with pytest.raises(InvalidArgument, match="completions has 9 entries: this server takes at most 8"):
            client.score([PROMPT], [COMPLETION] * 9)
        with pytest.raises(InvalidArgument, match="prompts has 9 entries"):
            list(client.generate([PROMPT] * 9, max_tokens=1))


@pytest.mark.parametrize("face", ["http", "grpc"])
def test_the_verifier_requires_keys_too(verifier, face):
    address = getattr(verifier, face)
    item = Item("exact", "so \\boxed{7}", "7")
    with VerifierClient(address, api_key=KEY["maths"]) as client:
        assert client.verify([item])[0].error is None
        assert next(client.verify_stream([item])).error is None
    for key in (None, WRONG, KEY["expired"]):
        with VerifierClient(address, api_key=key) as client:
            with pytest.raises(Unauthenticated):
                client.verify([item])
            assert isinstance(next(client.verify_stream([item])).error, Unauthenticated)


def test_a_removed_key_fails_the_next_item_of_the_verifiers_stream(verifier):
    listed = tenants()
    verified = threading.Event()

    def items():
        yield Item("exact", "7", "7", id="before")
        verified.wait(30)
        write(verifier.file, listed[:-1])
        os.kill(verifier.pid, signal.SIGHUP)
        with VerifierClient(verifier.http, api_key=KEY["mortal"], retries=0) as other:
            until(lambda: isinstance(next(other.verify_stream([Item("exact", "7", "7")])).error, Unauthenticated))
        yield Item("exact", "7", "7", id="after")

    errors = {}
    try:
        with VerifierClient(verifier.grpc, api_key=KEY["mortal"], retries=0, max_in_flight=1) as client:
            for verdict in client.verify_stream(items()):
                errors[verdict.id] = verdict.error
                verified.set()
    finally:
        write(verifier.file, listed)
        os.kill(verifier.pid, signal.SIGHUP)
    assert errors["before"] is None
    assert isinstance(errors["after"], Unauthenticated)


def test_the_verifiers_tokens_are_characters_by_4_and_a_stream_retries_at_the_suggested_time(verifier):
    """1,200 tokens a minute, which are 4,800 characters; then 20 tokens a second."""
    with VerifierClient(verifier.grpc, api_key=KEY["slow"], retries=0) as client:
        assert client.verify([Item("exact", "7" * 4_600, "7" * 200)])[0].error is None
        with pytest.raises(ResourceExhausted) as caught:
            client.verify([Item("exact", "7" * 79, "7")])
        assert 0 < caught.value.retry_seconds <= 1
        assert isinstance(next(client.verify_stream([Item("exact", "7" * 80, "7")])).error, ResourceExhausted)
    with VerifierClient(verifier.grpc, api_key=KEY["slow"], retries=1, max_in_flight=1) as client:
        verdicts = list(client.verify_stream([Item("exact", "7" * 40, "7")] * 2))
    assert [verdict.error for verdict in verdicts] == [None, None]


def test_keys_from_the_environment(monkeypatch):
    monkeypatch.setenv("VOLD_API_KEYS", f"maths:{KEY['maths']}")
    with running("--workers", "1") as server:
        with VerifierClient(server.url, api_key=KEY["maths"]) as client:
            assert client.verify([Item("exact", "7", "7")])[0].error is None
        with VerifierClient(server.url) as client, pytest.raises(Unauthenticated):
            client.list_verifiers()


def test_a_service_that_the_trainer_starts_needs_no_key(monkeypatch):
    monkeypatch.setenv("VOLD_API_KEYS", f"maths:{KEY['maths']}")
    monkeypatch.setenv("VOLD_TLS_CERT", "/nowhere.pem")
    config = VerifierConfig(url="local:")
    with open_services(verifier=config) as services, VerifierClient(list(services.verifier_urls)) as client:
        assert client.verify([Item("exact", "7", "7")])[0].error is None
    assert verifier_client(config, services).urls == list(services.verifier_urls)


def test_a_service_is_started_without_a_fork():
    """A fork of a process that uses gRPC may abort before it executes another program."""
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))
    with open_services(verifier=VerifierConfig(url="local:")) as services, VerifierClient(services.verifier_urls[0]):
        pass
    assert forks == []


def test_the_trainer_fails_at_once_if_its_key_is_refused(verifier, monkeypatch):
    config = VerifierConfig(url=verifier.grpc)
    monkeypatch.delenv("VOLD_VERIFIER_API_KEY", raising=False)
    with pytest.raises(UsageError, match=r"wants an API key.* VOLD_VERIFIER_API_KEY .*which is not set"):
        open_services(verifier=config).__enter__()
    monkeypatch.setenv("VOLD_VERIFIER_API_KEY", WRONG)
    with pytest.raises(UsageError, match=r"verifier\.url: UNAUTHENTICATED") as caught:
        open_services(verifier=config).__enter__()
    assert WRONG not in str(caught.value)
    monkeypatch.setenv("VOLD_VERIFIER_API_KEY", KEY["maths"])
    with open_services(verifier=config) as services:
        assert services.verifier_urls == (verifier.grpc,)


def test_a_server_does_not_start_with_keys_that_it_cannot_read(folder, tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": [{"name": "maths", "keys": [{"sha256": KEY["maths"]}]}]}))
    result = CliRunner().invoke(teacher_cli, ["serve", "--model", str(folder), "--api-keys", str(file)])
    assert result.exit_code == 1
    assert f"{file}: tenants[0].keys[0].sha256 is not 64 hexadecimal digits" in result.output
    assert KEY["maths"] not in result.output


NO_KEYS = ["sk-one\nsk-two", "sk-one two", "sk-\u00fcber", "sk-one\x00"]


@pytest.mark.parametrize("text", NO_KEYS[:3])  # the last is in no environment
def test_more_than_a_key_is_refused_where_it_is_read_and_never_shown(text, folder, monkeypatch):
    """What a service sends to another one: an HTTP client's error about such a header would show it."""
    for key, words in ((text, "VOLD_JUDGE_KEY"), ("sk-one", "judge_model is not")):  # the latter is of all settings
        monkeypatch.setenv("VOLD_JUDGE_KEY", key)
        result = CliRunner().invoke(verifier_cli, ["serve", "--judge-url", "http://localhost:9/v1"])
        assert result.exit_code == 2
        assert words in result.output
        assert "sk-" not in result.output
    monkeypatch.setenv("VOLD_API_KEYS", f"maths:{'sk-' * 10}{text}")
    with pytest.raises(KeysError, match="entry 0 is not TENANT:KEY") as refused:
        Keys.load(None)
    assert "sk-" not in str(refused.value)
    monkeypatch.setenv("VOLD_UPSTREAM_API_KEY", text)
    settings = TeacherSettings(
        model="vllm+http://localhost:9", backend="upstream", tokenizer=folder, http=None, grpc="unix:x"
    )
    with pytest.raises(OSError, match=r"VOLD_UPSTREAM_API_KEY holds more than an API key") as failed:
        make_backend(settings, settings.model[0])
    assert "sk-" not in str(failed.value)


@pytest.mark.parametrize("text", NO_KEYS)
def test_more_than_a_key_is_no_key_of_a_client(text, url):
    with pytest.raises(InvalidArgument, match="the API key has white space, a line break or a character") as caught:
        TeacherClient(url, api_key=text)
    assert "sk-" not in str(caught.value)


def test_white_space_around_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("VOLD_JUDGE_KEY", " sk-one\n")
    settings = VerifierSettings(judge_url="http://localhost:9/v1", judge_model="critic")
    assert settings.judge_key.get_secret_value() == "sk-one"
    assert outgoing_key("\t\n", "") == ""
