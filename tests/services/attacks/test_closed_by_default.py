"""A service without keys answers its own machine only, and there no page of another site; with keys, or where --open
says so, it answers others too.
"""

import json
import re
import shlex
import sys
from functools import cache

import httpx
import programs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from known_keys import known_key
from paths import ROOT
from servers import started
from teacher_fixtures import save_model
from vold_service.browsers import is_private_name
from vold_service.keys import Keys
from vold_service.settings import ExposureError, is_loopback
from vold_teacher.settings import TeacherSettings
from vold_verifier.settings import VerifierSettings

SERVICES = ("teacher", "verifier")
KEY = known_key("closed")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("teacher") / "tiny"))


def of(service: str, model: str) -> list[str]:
    return ["--model", model, "--threads", "1"] if service == "teacher" else ["--workers", "1"]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("face", ["http", "grpc"])
def test_a_face_that_other_machines_reach_needs_keys_or_open(service, face, model):
    faces = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", face: "0.0.0.0:0"}
    given = [argument for name, address in faces.items() for argument in (f"--{name}", address)]
    found = programs.run([sys.executable, "-m", f"vold_{service}", "serve", *given, *of(service, model)])
    assert found.returncode != 0
    words = re.sub(r"[\s│]+", " ", found.stderr)  # typer may draw a box around it
    for part in (f"--{face} 0.0.0.0:0", "--api-keys", "VOLD_API_KEYS", "127.0.0.1", "--open"):
        assert part in words, part
    assert found.stdout == ""


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_alone_ends_with_the_remedy(service, model):
    """By the ENTRYPOINT of its Dockerfile."""
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    program, *words = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", text, re.M)[1])
    assert program == f"vold-{service}"
    assert "--open" not in words
    command = [sys.executable, "-m", f"vold_{service}", *words]
    found = programs.run([*command, *of(service, model)])
    assert found.returncode != 0
    assert "--open" in found.stderr


def test_compose_opens_what_is_on_the_internal_network_alone():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    internal = {name for name, network in compose["networks"].items() if network and network.get("internal")}
    services = {
        name: service
        for name, service in compose["services"].items()
        if service.get("build", {}).get("dockerfile", "").startswith("services/")
    }
    assert {"teacher", "verifier", "gateway"} <= set(services)
    for name, service in services.items():
        assert ("--open" in service["command"]) == (set(service["networks"]) <= internal), name
        assert "ports" not in service


@pytest.mark.slow
def test_open_serves_whoever_comes():
    with started("verifier", "--http", "0.0.0.0:0", "--grpc", "0.0.0.0:0", "--workers", "1", "--open") as (_, ready):
        port = ready["http"].rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}/v1/verifiers").status_code == 200


@pytest.mark.parametrize("prefix", ["VOLD_", "VOLD_TEACHER_"])
def test_open_is_a_variable_too(prefix, monkeypatch):
    monkeypatch.setenv(prefix + "OPEN", "1")
    settings = VerifierSettings() if prefix == "VOLD_" else TeacherSettings(model=["a"])
    settings.http = "0.0.0.0:1"
    settings.check_exposure(Keys(), None)
    settings.open = False
    settings.check_exposure(Keys(environment=f"maths:{KEY}"), None)
    with pytest.raises(ExposureError):
        settings.check_exposure(Keys(), None)


def test_with_keys_the_key_says_who_calls():
    """Everywhere, and whatever a browser says of the page."""
    options = ("--http", "0.0.0.0:0", "--grpc", "none", "--workers", "1")
    with started("verifier", *options, environment={"VOLD_API_KEYS": f"maths:{KEY}"}) as (_, ready):
        url = f"http://127.0.0.1:{ready['http'].rpartition(':')[2]}"
        headers = {"host": "teacher.example", "origin": "http://teacher.example"}
        assert ask(url, authorization=f"Bearer {KEY}", **headers).status_code == 200
        assert ask(url, **headers).status_code == 401


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_is_of_this_machine_alone_if_it_is_a_loopback(address, port):
    text = f"[{address}]" if address.version == 6 else str(address)
    assert is_loopback(f"{text}:{port}") == address.is_loopback


def test_names_and_sockets_are_of_this_machine_alone_or_not():
    assert is_loopback("localhost:1")
    assert is_loopback("unix:/tmp/socket")
    assert not any(map(is_loopback, ("localhost.example.com:1", "teacher:1", "0.0.0.0:1", "[::]:1", "127.0.0.1.de:1")))


# -- pages of other sites

OURS = [
    *("127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000", "10.0.0.7:8000", "teacher:8000", "LocalHost"),
    *("teacher.default.svc:8000", "teacher.default.svc.cluster.local", "node-3.internal.", "printer.local"),
]
OTHERS = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "a.b", "1.2.3.4.5"]


@cache
def client() -> httpx.Client:
    """One for all: each would read the machine's certificates."""
    return httpx.Client(timeout=60)


def ask(url: str, method: str = "GET", path: str = "/v1/status", **headers: str) -> httpx.Response:
    content = b"{}" if method == "POST" else None
    return client().request(method, url + path, headers=headers, content=content)


@pytest.mark.parametrize("service", ["verifier", "pocket_teacher"])
def test_without_keys_a_page_of_another_site_is_refused(service, request):
    url = request.getfixturevalue(service).http
    own = url.removeprefix("http://")
    for host in OURS:
        assert ask(url, host=host).status_code == 200, host
        assert ask(url, host=host, origin=f"http://{host}").status_code == 200, host
    work = "/v1/verify" if service == "verifier" else "/v1/score"
    for method, path in (("GET", "/v1/status"), ("GET", "/"), ("GET", "/metrics"), ("POST", work), ("GET", "/nowhere")):
        for host in OTHERS:
            refused = ask(url, method, path, host=host)
            assert refused.status_code == 403, (path, host)
            assert refused.json()["error"]["code"] == "PERMISSION_DENIED"
            assert refused.json()["error"]["field"] == "host"
            assert "--api-keys" in refused.json()["error"]["message"]
        for origin in ("http://evil.example", "null", f"https://evil.example/{own}", "http://127.0.0.1:1", "http://["):
            refused = ask(url, method, path, origin=origin)
            assert refused.status_code == 403, (path, origin)
            assert refused.json()["error"]["field"] == "origin"
    for path in ("/healthz", "/readyz"):
        assert ask(url, path=path, host="load-balancer.example").status_code == 200
    assert ask(url, "POST", work, origin=url).status_code == 422, "its own pages may post"


@given(st.from_regex(r"\A[a-z0-9-]{1,10}(\.[a-z0-9-]{1,10}){0,2}\.(com|example|de|io|dev|ai)\.?\Z"))
def test_no_name_of_the_public_dns_is_private(name):
    assert not is_private_name(name)


# -- what a reply lets a browser do


@pytest.mark.parametrize("service", ["verifier", "pocket_teacher"])
def test_the_page_of_routes_loads_nothing_and_names_every_route(service, request):
    url = request.getfixturevalue(service).http
    reply = ask(url, path="/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|<img|<iframe|@import|url\(|\bon\w+=", reply.text)
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", reply.text) == ["data:,", "openapi.json"]
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    schema = ask(url, path="/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in reply.text


@pytest.mark.parametrize("service", ["verifier", "pocket_teacher"])
def test_every_reply_has_the_security_headers(service, request):
    url = request.getfixturevalue(service).http
    replies = [ask(url, path=path) for path in ("/", "/docs", "/v1/status", "/metrics", "/healthz", "/readyz", "/no")]
    replies += [ask(url, host="evil.example"), ask(url, "POST", "/v1/status")]
    replies += [ask(url, "POST", path) for path in ("/v1/verify", "/v1/score", "/v1/completions")]
    assert {reply.status_code for reply in replies} >= {200, 403, 404, 405}
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert "cache-control" in reply.headers
        assert "server" not in reply.headers


def test_no_guide_serves_other_machines_without_keys():
    """Every `serve` in the docs that leaves the loopback names keys, a client CA, or --open."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^\s*(vold-(?:teacher|verifier) serve .*)$", text, re.M):
            words = shlex.split(line, comments=True)
            addresses = [words[at + 1] for at, word in enumerate(words) if word in ("--http", "--grpc")]
            if not all(map(is_loopback, addresses)):
                assert {"--api-keys", "--open", "--tls-client-ca"} & set(words), f"{page.name}: {line}"
