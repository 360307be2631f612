"""Service URLs: accepted forms, and the errors of others."""

import pytest
from vold_client import AsyncTeacherClient, InvalidArgument
from vold_client.urls import Address, parse_url, parse_urls


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("grpc://host:50051", Address("grpc://host:50051", "host:50051")),
        ("grpc://[::1]:50051/", Address("grpc://[::1]:50051/", "[::1]:50051")),
        ("grpcs://host:443", Address("grpcs://host:443", "host:443", tls=True)),
        ("http://host:8000/", Address("http://host:8000/", "http://host:8000", http=True)),
        ("https://host/teacher", Address("https://host/teacher", "https://host/teacher", http=True, tls=True)),
        ("unix:run/t.sock", Address("unix:run/t.sock", "unix:run/t.sock")),
        ("unix:/run/t.sock", Address("unix:/run/t.sock", "unix:/run/t.sock")),
        ("unix:///run/t.sock", Address("unix:///run/t.sock", "unix:/run/t.sock")),
    ],
)
def test_accepted(url, address):
    assert parse_url(url) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:50051", "no scheme"),
        ("teacher", "no scheme"),
        ("grpc://localhost", "no port"),
        ("grpc://:50051", "no host"),
        ("grpc://localhost:port", "cannot be read"),
        ("grpc://localhost:99999", "cannot be read"),
        ("grpc://localhost:1/path", "/path"),
        ("http://localhost:1?x=1", "query"),
        ("http://localhost:8000/v1", "ends in /v1, which the client adds"),
        ("https://host/teacher/v1/", "ends in /v1, which the client adds"),
        ("unix:~/t.sock", "has a ~"),
        ("unix:///~/t.sock", "has a ~"),
        ("unix:", "no path"),
        ("unix://relative", "no path"),
        ("ftp://localhost:1", "'ftp'"),
        ("vllm+http://localhost:8000", "'vllm+http'"),
        ("sglang+http://localhost:8000", "'sglang+http'"),
        ("local:model", "started by the trainer"),
        ("", "names no service"),
        (" , ", "names no service"),
    ],
)
def test_the_error_has_the_url_and_the_accepted_forms(url, why):
    with pytest.raises(InvalidArgument) as caught:
        AsyncTeacherClient(url)
    assert caught.value.field == "url"
    assert why in caught.value.message
    assert repr(url) in caught.value.message
    assert "grpc://HOST:PORT" in caught.value.message


def test_credentials_are_refused_and_not_shown():
    with pytest.raises(InvalidArgument, match="api_key") as caught:
        parse_url("https://user:secret@host")
    assert "secret" not in str(caught.value)


def test_replicas():
    assert [a.target for a in parse_urls("grpc://a:1, grpc://b:2")] == ["a:1", "b:2"]
    assert [a.target for a in parse_urls(["grpc://a:1", "unix:b,http://c"])] == ["a:1", "unix:b", "http://c"]


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("inf")}, {"retries": -1}])
def test_options_out_of_range(options):
    with pytest.raises(InvalidArgument):
        AsyncTeacherClient("grpc://a:1", **options)
