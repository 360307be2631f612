"""A failure of the service itself, in the format of the route that it happens on."""

import pytest
from starlette.testclient import TestClient
from vold_service.app import make_app
from vold_service.keys import Keys
from vold_teacher.http import add_routes


@pytest.fixture(scope="module")
def failing():
    """The teacher's routes without a teacher: each fails."""
    app = make_app("teacher", max_body_bytes=1024, ready=lambda: True, keys=Keys())
    add_routes(app, None)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/a"),
        ("GET", "/tokenizer_info"),
    ],
)
def test_a_failure_on_openais_routes_has_openais_shape(failing, method, path):
    reply = failing.request(method, path, json={"prompt": "secret"} if method == "POST" else None)
    assert reply.status_code == 500
    error = reply.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "internal", None)
    assert "AttributeError" in error["message"]
    assert "secret" not in reply.text


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/info"), ("POST", "/v1/score"), ("POST", "/v1/models/load")])
def test_a_failure_on_our_own_routes_has_our_shape(failing, method, path):
    reply = failing.request(method, path, json={"name": "a", "path": "b"} if method == "POST" else None)
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "INTERNAL"
    reply = failing.request("GET", path, headers={"accept": "application/x-protobuf"})
    assert reply.headers["content-type"] == "application/x-protobuf"
