"""TLS and mutual TLS on both faces with generated certificates, and the errors if they do not match."""

import datetime
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from teacher_fixtures import save_model, teacher_server
from typer.testing import CliRunner
from verifier_server import running
from vold_client import (
    Completion,
    InvalidArgument,
    Item,
    TeacherClient,
    Tls,
    Unauthenticated,
    Unavailable,
    VerifierClient,
)
from vold_trainer.config import VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.services.local import open_services, verifier_client
from vold_verifier.cli import app as verifier_cli

EXPIRED = {"not_before": datetime.datetime(2020, 1, 1), "not_after": datetime.datetime(2021, 1, 1)}
ITEM = Item("exact", "7", "7")


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str, **options: object) -> Pair:
        certificate = self._ca.issue_cert(*(hosts or ("127.0.0.1",)), **options)
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.key.write_bytes(certificate.private_key_pem.bytes())
        pair.cert.write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
        return pair


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca") / "ours")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca") / "other")


def options(pair: Pair, *more: str) -> list[str]:
    return ["--workers", "1", "--tls-cert", str(pair.cert), "--tls-key", str(pair.key), *more]


def urls(server) -> dict[str, str]:
    return {"http": server.url, "grpc": f"grpcs://{server.ready['grpc']}"}


@pytest.fixture(scope="module")
def plain():
    with running("--workers", "1") as server:
        yield urls(server)


@pytest.fixture(scope="module")
def tls(ca):
    with running(*options(ca.issue("server"))) as server:
        yield urls(server)


@pytest.fixture(scope="module")
def mutual(ca):
    with running(*options(ca.issue("mutual"), "--tls-client-ca", str(ca.file))) as server:
        yield urls(server)


@pytest.fixture(params=["http", "grpc"])
def face(request):
    return request.param


def verify(url: str, tls: Tls | None, retries: int = 0) -> None:
    with VerifierClient(url, tls=tls, retries=retries, timeout=20) as client:
        assert client.verify([ITEM])[0].reward == 1


def test_a_client_that_trusts_the_ca_is_served(tls, ca, face):
    assert tls["http"].startswith("https://")
    verify(tls[face], Tls(ca=ca.file))
    with VerifierClient(tls[face], tls=Tls(ca=ca.file)) as client:
        client.ready(5)


@pytest.mark.parametrize("trusted", ["another", "public"])
def test_a_certificate_of_an_unknown_ca_is_refused_at_once(tls, other, face, trusted):
    with pytest.raises(Unauthenticated, match=r"certificate is refused: no CA that is trusted here.*tls\.ca"):
        verify(tls[face], Tls(ca=other.file) if trusted == "another" else None, retries=4)


@pytest.mark.slow
def test_a_certificate_that_has_expired_or_is_for_another_host_is_refused_at_once(ca):
    for pair, words in (
        (ca.issue("old", **EXPIRED), "it has expired; ask the operator to renew it"),
        (ca.issue("elsewhere", "elsewhere.example"), "it is for another host"),
    ):
        with running(*options(pair)) as server:
            for url in urls(server).values():
                with pytest.raises(Unauthenticated, match=words):
                    verify(url, Tls(ca=ca.file), retries=4)


def test_the_error_of_a_plain_text_client_suggests_tls_urls(tls, face):
    url = tls[face].replace("https:", "http:").replace("grpcs:", "grpc:")
    with pytest.raises(Unavailable, match="If it speaks TLS, write grpcs:// or https://"):
        verify(url, None)


def test_the_error_of_a_tls_client_says_that_the_service_has_no_tls(plain, ca, face):
    url = plain[face].replace("http:", "https:")
    with pytest.raises(Unavailable, match="it does not speak TLS"):
        verify(url, Tls(ca=ca.file))


def test_a_client_with_a_certificate_of_the_right_ca_is_served(mutual, ca, face):
    pair = ca.issue("client", "a-client.example")
    verify(mutual[face], Tls(ca=ca.file, cert=pair.cert, key=pair.key))


@pytest.mark.parametrize("kind", ["none", "another", "expired"])
def test_a_client_without_a_valid_certificate_is_refused(mutual, ca, other, face, kind):
    pair = {"another": other.issue("client"), "expired": ca.issue("expired-client", **EXPIRED)}.get(kind)
    mine = Tls(ca=ca.file) if pair is None else Tls(ca=ca.file, cert=pair.cert, key=pair.key)
    with pytest.raises(Unavailable, match=r"If it asks for a client certificate, give tls\.cert and tls\.key"):
        verify(mutual[face], mine)


def test_probes_need_no_certificate_and_have_no_other_routes(ca):
    mutual = options(ca.issue("probed"), "--tls-client-ca", str(ca.file))
    with running(*mutual, "--probes", "127.0.0.1:0") as server:
        url = server.ready["probes"]
        assert url.startswith("http://")
        assert httpx.get(f"{url}/healthz").text == "ok\n"
        assert httpx.get(f"{url}/readyz").status_code == 200
        for path in ("/", "/metrics", "/v1/verifiers", "/v1/verify", "/docs", "/openapi.json"):
            assert httpx.get(url + path).status_code == 404
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/readyz", verify=False)


def test_an_idle_caller_over_tls_is_disconnected(ca):
    with running(*options(ca.issue("silent"), "--idle-seconds", "0.5")) as server:
        address = httpx.URL(server.url)
        context = ssl.create_default_context(cafile=str(ca.file))
        for sent in (b"", b"GET /healthz HTTP/1.1\r\n", b"POST /v1/verify HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"):
            with (
                socket.create_connection((address.host, address.port), timeout=60) as raw,
                context.wrap_socket(raw, server_hostname=address.host) as silent,
            ):
                silent.sendall(sent)
                assert silent.recv(1000) == b"", "closed by the server"
        verify(server.url, Tls(ca=ca.file))


def test_a_renewed_certificate_is_shown_without_a_restart(ca):
    pair = ca.issue("renewed", **EXPIRED)
    with running(*options(pair)) as server:
        for url in urls(server).values():
            with pytest.raises(Unauthenticated):
                verify(url, Tls(ca=ca.file))
        ca.issue("renewed")
        for url in urls(server).values():
            while not served(url, Tls(ca=ca.file)):
                time.sleep(0.2)


def served(url: str, tls: Tls) -> bool:
    try:
        verify(url, tls)
    except Unauthenticated:
        return False
    return True


def test_the_teacher_speaks_tls_too(tmp_path, ca):
    pair = ca.issue("teacher")
    with teacher_server(
        save_model(tmp_path / "tiny"), "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)
    ) as server:
        for url in (server.http, f"grpcs://{server.grpc}"):
            with TeacherClient(url, tls=Tls(ca=ca.file)) as client:
                assert client.score([[5, 6]], [Completion(0, [7])]).scores[0].error is None


def test_the_trainer_takes_certificates_from_its_config(mutual, ca, face):
    pair = ca.issue("trainer")
    config = VerifierConfig(url=mutual[face], tls={"ca": ca.file, "cert": pair.cert, "key": pair.key})
    with open_services(verifier=config) as services:
        assert verifier_client(config, services).urls == [mutual[face]]
    with (
        pytest.raises(UsageError, match=r"verifier\.url: .*no CA that is trusted here"),
        open_services(verifier=VerifierConfig(url=mutual[face])),
    ):
        pass


def test_certificates_for_a_plain_url_are_a_mistake(ca):
    with pytest.raises(InvalidArgument, match=r"grpc://localhost:1 is plain text: write grpcs://"):
        VerifierClient("grpc://localhost:1", tls=Tls(ca=ca.file))


def test_a_clients_files_are_checked(ca, other, face):
    url = {"http": "https://localhost:1", "grpc": "grpcs://localhost:1"}[face]
    mine, theirs = ca.issue("mine"), other.issue("theirs")
    for wrong, words in [
        (Tls(ca="/nowhere.pem"), "tls.ca is '/nowhere.pem', which is no file"),
        (Tls(ca=mine.key), "holds no certificate in PEM"),
        (Tls(cert=mine.cert), "tls.cert is set and tls.key is not"),
        (Tls(cert=mine.cert, key=theirs.key), "do not go together"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            verify(url, wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--tls-cert", "CERT"], ["--tls-cert", "--tls-key is missing"]),
        (["--tls-key", "KEY"], ["--tls-key", "--tls-cert is missing"]),
        (["--tls-client-ca", "CERT"], ["--tls-client-ca", "needs --tls-cert"]),
        (["--tls-cert", "/nowhere.pem", "--tls-key", "KEY"], ["--tls-cert /nowhere.pem", "No such file"]),
        (["--tls-cert", "CERT", "--tls-key", "OTHER"], ["do not go together", "KEY_VALUES_MISMATCH"]),
        (["--tls-cert", "CERT", "--tls-key", "LOCKED"], ["do not go together", "not encrypted"]),
        (["--tls-cert", "CERT", "--tls-key", "KEY", "--tls-client-ca", "KEY"], ["holds no certificate in PEM"]),
    ],
)
def test_a_server_does_not_start_with_files_that_do_not_fit(ca, other, tmp_path, wrong, words):
    mine, theirs = ca.issue("started"), other.issue("started")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(mine.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    files = {"CERT": mine.cert, "KEY": mine.key, "OTHER": theirs.key, "LOCKED": locked}
    arguments = [str(files.get(word, word)) for word in wrong]
    options = ["serve", "--http", "127.0.0.1:0", "--grpc", "none", *arguments]
    result = CliRunner(env={"COLUMNS": "400", "TERM": "dumb"}).invoke(verifier_cli, options)
    assert result.exit_code == 2
    output = " ".join(result.output.replace("│", " ").split())
    for word in words:
        assert word in output
