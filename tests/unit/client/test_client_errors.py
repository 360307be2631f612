"""The client's errors, and the modules that importing the client loads."""

import json
import subprocess
import sys

import pytest
import vold_client
from vold_client import VoldError
from vold_client.errors import from_http, from_status
from vold_proto.v1 import status_pb2


@pytest.mark.parametrize("name", [name for name in status_pb2.Code.keys() if name != "OK"])  # noqa: SIM118
def test_every_code_of_the_wire_has_a_class(name):
    status = status_pb2.Status(code=name, message="why", field="where", retry_seconds=2.0, reason="quota")
    error = from_status(status, "grpc://a:1")
    assert isinstance(error, VoldError)
    assert type(error) is not VoldError
    assert (error.code, error.message, error.field, error.retry_seconds) == (name, "why", "where", 2.0)
    assert str(error) == f"{name}: where: why [grpc://a:1]"
    protobuf = from_http(500, "application/x-protobuf", status.SerializeToString(), "")
    body = {"error": {"code": name, "message": "why", "field": "where", "retry_seconds": 2.0, "reason": "quota"}}
    text = from_http(500, "application/json", json.dumps(body).encode(), "")
    assert type(error) is type(protobuf) is type(text)
    assert text.retry_seconds == 2.0
    assert error.reason == protobuf.reason == text.reason == "quota"


def test_an_error_of_a_service_that_gives_no_reason_has_none():
    body = json.dumps({"error": {"code": "RESOURCE_EXHAUSTED", "message": "why"}}).encode()
    assert from_http(429, "application/json", body, "").reason == ""
    assert from_http(429, "text/html", b"", "").reason == ""


@pytest.mark.parametrize(
    ("status", "code"), [(401, "UNAUTHENTICATED"), (404, "NOT_FOUND"), (418, "INVALID_ARGUMENT"), (502, "UNAVAILABLE")]
)
def test_the_error_of_a_proxys_reply(status, code):
    for content_type in ("text/html", "application/json", "application/x-protobuf"):
        assert from_http(status, content_type, b"<html>", "").code == code


def test_ok_gives_no_error():
    assert from_status(status_pb2.Status()) is None


def test_the_client_needs_neither_torch_nor_the_services():
    heavy = ["torch", "transformers", "pydantic", "fastapi", "vold_service", "vold_trainer"]
    code = f"import sys, vold_client; print([name for name in {heavy} if name in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"


def test_everything_public_is_listed():
    assert all(hasattr(vold_client, name) for name in vold_client.__all__)
