"""A proxy of the environment in the way of a call, or left out of it: the error names the variable."""

import http.server
import threading

import pytest
from client_servers import free_port
from vold_client import TeacherClient, VoldError
from vold_proto.proxies import proxy_remedy

SECRET = "http://me:secret@"


class Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that lets nobody through."""

    def do_POST(self) -> None:
        body = b"<html>blocked by policy</html>"
        self.send_response(403)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_CONNECT = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def proxy():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"{SECRET}127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(url: str) -> str:
    with pytest.raises(VoldError) as caught, TeacherClient(url, retries=0) as client:
        client.info(timeout=20)
    assert "secret" not in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("HTTP_PROXY", "http://teacher.invalid:8000"),
        ("all_proxy", "http://teacher.invalid:8000"),
        ("https_proxy", "https://teacher.invalid:8000"),
        ("http_proxy", "grpc://teacher.invalid:8000"),
    ],
)
def test_a_proxy_that_refuses_is_named_by_its_variable(name, url, proxy, monkeypatch):
    monkeypatch.setenv(name, proxy)
    message = refusal(url)
    assert f"{name} sends the call through a proxy; if teacher.invalid is to be reached without it" in message
    assert "add teacher.invalid to NO_PROXY" in message


def test_no_proxy_is_named_where_it_keeps_a_call_from_the_proxy(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "teacher.invalid,127.0.0.1")
    assert "NO_PROXY keeps the call from the proxy of HTTP_PROXY" in refusal("http://teacher.invalid:8000")
    assert "PROXY" not in refusal(f"http://127.0.0.1:{free_port()}")  # of this machine


def test_without_a_proxy_none_is_named(monkeypatch):
    assert "PROXY" not in refusal(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    assert proxy_remedy("http://a:1") == proxy_remedy("unix:/a") == proxy_remedy("") == proxy_remedy("http://") == ""
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    assert proxy_remedy("vllm+http://a:1").startswith("http_proxy sends")
