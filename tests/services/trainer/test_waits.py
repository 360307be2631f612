"""What the trainer's commands wait for, at real services: a service that throttles them, a key that is replaced, and a
service that is not ready.
"""

import asyncio
import contextlib
import json

import pytest
from held_tenant import KEY, OTHER_KEY, Hold, write_keys
from servers import serving
from upstream_fixtures import free_port
from vold_client import AsyncVerifierClient, Item, Unauthenticated
from vold_trainer.config import DataConfig, EvalConfig, StudentConfig, TeacherConfig, VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.evaluation.answers import GREEDY, Answer
from vold_trainer.evaluation.run import verify_set
from vold_trainer.pocket.world import make_examples
from vold_trainer.services import Outages, Services, open_services, outages, readiness, throttling, verifier_client
from vold_trainer.services.outages import InterruptedWaitError, MonitoredService, ServiceGoneError
from vold_trainer.tasks import ClientTasks
from vold_trainer.verification.file import run_verify

ITEM = Item("exact", "so \\boxed{7}", "7")
NOBODY = f"grpc://127.0.0.1:{free_port()}"


class Keyed:
    """A verifier of one tenant. http, grpc: its URLs."""

    def __init__(self, folder, server):
        self.file = folder / "keys.yaml"
        self.server = server
        self.http, self.grpc = server.http, server.grpc

    def set_keys(self, *keys):
        write_keys(self.file, *keys, process=self.server.process)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyed")
    write_keys(folder / "keys.yaml", KEY)
    with serving("verifier", "--workers", "1", "--api-keys", str(folder / "keys.yaml")) as server:
        yield Keyed(folder, server)


@pytest.fixture
def keyed(server, monkeypatch):
    """The server with the key KEY, which the variable has too."""
    monkeypatch.setenv("VOLD_VERIFIER_API_KEY", KEY)
    yield server
    server.set_keys(KEY)


@pytest.fixture
def notices(monkeypatch):
    """The notices about throttling. `on_first`, if set, is called after the first."""

    class Notices(list):
        on_first = staticmethod(lambda: None)

    listed = Notices()

    def print_notice(text):
        listed.append(text)
        if len(listed) == 1:
            listed.on_first()

    monkeypatch.setattr(throttling, "print_notice", print_notice)
    return listed


@contextlib.contextmanager
def monitored(config, *, run_outages=None):
    """A verifier's client as a run has it: call(items) returns the verdicts."""
    services = Services(verifier_urls=(config.url,))
    run_outages = run_outages or Outages()
    tasks = ClientTasks()

    async def make():
        return verifier_client(config, services, outages=run_outages)

    client = tasks.run(make())
    service = MonitoredService("verifier", client, run_outages)

    def call(items):
        verdicts = []

        async def request():
            verdicts.extend(await client.verify(items))

        tasks.run(service.call(request))
        return verdicts

    try:
        yield service, call
    finally:
        tasks.run(service.aclose())
        tasks.run(client.aclose())


@pytest.mark.parametrize("face", ["http", "grpc"])
def test_a_throttled_call_is_answered_and_shown(keyed, notices, face):
    """Its waits count neither as retries nor as time of the call: the service refuses it until it has been noticed."""
    run_outages = Outages()
    states = []
    with (
        Hold(keyed.grpc) as hold,
        monitored(VerifierConfig(url=getattr(keyed, face), timeout=5), run_outages=run_outages) as (service, call),
    ):
        notices.on_first = lambda: (states.append(service.state()), hold.end())
        assert [verdict.reward for verdict in call([ITEM])] == [1.0]
        assert service.state().startswith("0 in flight · last request")
    (notice,) = notices
    assert f"verifier {getattr(keyed, face)} throttles calls" in notice
    assert "the tenant 'run' has 1 requests under way, and may have 1" in notice
    assert states[0].startswith("1 in flight · throttled, next try in ")
    assert [lane for lane, _, _ in run_outages.take_spans()] == ["throttled"]


def test_a_stop_request_ends_the_wait_of_a_throttled_call(keyed, notices):
    run_outages = Outages(stop_requested=lambda: bool(notices))
    with (
        Hold(keyed.grpc),
        monitored(VerifierConfig(url=keyed.grpc), run_outages=run_outages) as (service, call),
        pytest.raises(InterruptedWaitError, match=r"asked to stop while verifier .* throttled it"),
    ):
        call([ITEM])
    assert service.in_flight == 0


def test_a_file_is_verified_by_a_service_that_throttles(keyed, notices, tmp_path):
    rows = [{"id": n, "completion": "\\boxed{7}", "reference": "7"} for n in range(600)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = VerifierConfig(url=keyed.grpc)
    with Hold(keyed.grpc) as hold:
        notices.on_first = hold.end
        assert run_verify(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), config) == 0
    verdicts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(verdict["id"], verdict["reward"]) for verdict in verdicts] == [(n, 1.0) for n in range(600)]
    assert len(notices) == 1


def test_answers_are_verified_by_a_service_that_throttles(keyed, notices, tmp_path):
    examples = make_examples("test", 1, modality="text")
    answers = [[Answer("text", example.id, GREEDY, "\\boxed{1}", 1, False, "")] for example in examples]
    verifier = VerifierConfig(url=keyed.grpc)
    config = EvalConfig(student=StudentConfig(path="pocket:student"), out=tmp_path, verifier=verifier)
    with Hold(keyed.grpc) as hold:
        notices.on_first = hold.end
        verified = verify_set(examples, answers, DataConfig(), config, Services(verifier_urls=(keyed.grpc,)))
    assert [problem.greedy[1].error for problem in verified] == [None]
    assert len(notices) == 1


@pytest.mark.parametrize("face", ["http", "grpc"])
def test_a_key_that_is_replaced_in_its_file_is_taken_at_the_next_refusal(keyed, tmp_path, face):
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n")
    with monitored(VerifierConfig(url=getattr(keyed, face), api_key_file=file)) as (service, call):
        assert call([ITEM])[0].reward == 1.0
        keyed.set_keys(OTHER_KEY)
        file.write_text(OTHER_KEY)
        assert call([ITEM])[0].reward == 1.0
        assert service._notice is None  # nobody had to wait


def test_a_stream_takes_a_key_that_is_replaced(keyed, tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)

    async def verdicts():
        config = VerifierConfig(url=keyed.grpc, api_key_file=file)
        async with verifier_client(config, Services(verifier_urls=(keyed.grpc,))) as client:

            async def items():
                yield ITEM
                await asyncio.wait_for(first.wait(), 30)
                write_keys(keyed.file, OTHER_KEY, max_concurrent=2, process=keyed.server.process)
                file.write_text(OTHER_KEY)
                await until_refused()
                yield ITEM

            first, found = asyncio.Event(), []
            async for verdict in client.verify_stream(items()):
                found.append(verdict)
                first.set()
            return found

    async def until_refused():
        """The service has read its file when it refuses the old key."""
        async with AsyncVerifierClient(keyed.grpc, api_key=KEY) as client:
            with contextlib.suppress(Unauthenticated):
                while True:
                    await client.list_verifiers()

    assert [verdict.error for verdict in asyncio.run(verdicts())] == [None, None]


def test_a_key_that_is_revoked_for_good_stops_the_run_at_the_limit(keyed, capfd):
    with monitored(VerifierConfig(url=keyed.grpc), run_outages=Outages(wait=0.1)) as (_, call):
        assert call([ITEM])[0].reward == 1.0
        keyed.set_keys(OTHER_KEY)
        message = r"refused the API key for \d+ s, and outage.wait is 0.1 s: .*variable VOLD_VERIFIER_API_KEY"
        with pytest.raises(ServiceGoneError, match=message) as caught:
            call([ITEM])
    stderr = " ".join(capfd.readouterr().err.split())
    assert "refuses the API key for 0 s" in stderr
    assert KEY not in stderr + str(caught.value)


def test_a_file_that_is_mended_ends_the_outage(keyed, tmp_path, monkeypatch, capfd):
    """In the middle of a rotation the file is empty: the old key stays, and the notice says what is wrong."""
    file = tmp_path / "key"
    file.write_text(KEY)
    update = outages._OutageNotice.update

    def updated(self, reason):
        update(self, reason)
        file.write_text(OTHER_KEY)

    monkeypatch.setattr(outages._OutageNotice, "update", updated)
    with monitored(VerifierConfig(url=keyed.grpc, api_key_file=file)) as (_, call):
        file.write_text("")
        keyed.set_keys(OTHER_KEY)
        assert call([ITEM])[0].reward == 1.0
    stderr = " ".join(capfd.readouterr().err.split())
    assert f"read from the file '{file}' (verifier.api_key_file); verifier.api_key_file '{file}' is empty" in stderr
    assert KEY not in stderr
    assert OTHER_KEY not in stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"verifier\.api_key_file '.*key' cannot be read \(No such file or directory\): give a file"),
        ("", r"verifier\.api_key_file '.*key' is empty: write the key into it"),
        (" \n", r"verifier\.api_key_file '.*key' is empty: write the key into it"),
        (
            "vold_one vold_two",
            r"verifier\.api_key_file '.*key' holds more than an API key.*: write the key into it, alone",
        ),
        ("schlüssel", r"verifier\.api_key_file '.*key' holds more than an API key"),
        ("k" * 5000, r"verifier\.api_key_file '.*key' holds more than an API key"),
        ("folder", r"verifier\.api_key_file '.*key' is no regular file"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named_before_anything_starts(tmp_path, content, message):
    file = tmp_path / "key"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        open_services(verifier=VerifierConfig(url=NOBODY, api_key_file=file)).__enter__()
    assert "vold_" not in str(caught.value)


def test_a_key_in_the_environment_is_checked_too(monkeypatch):
    monkeypatch.setenv("VOLD_VERIFIER_API_KEY", "vold_one\nvold_two")
    with pytest.raises(UsageError, match="variable VOLD_VERIFIER_API_KEY holds more than an API key") as caught:
        open_services(verifier=VerifierConfig(url=NOBODY)).__enter__()
    assert "vold_" not in str(caught.value)


@pytest.fixture
def no_patience(monkeypatch):
    """The waiting line is due at once, and a remote service has no time."""
    monkeypatch.setattr(readiness, "WAITING_LINE_SECONDS", 0)
    monkeypatch.setattr(readiness, "MIN_SECONDS", 0)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(NOBODY, id="grpc"),
        pytest.param(NOBODY.replace("grpc", "http"), id="http"),
        pytest.param("unix:/nowhere/teacher.sock", id="unix"),
    ],
)
def test_a_waiting_line_names_field_url_and_limit(no_patience, capfd, url):
    with pytest.raises(UsageError, match=rf"teacher\.url: UNAVAILABLE: not ready within 0\.5 s: .*{url}"):
        open_services(teacher=TeacherConfig(url=url), patience=0.5).__enter__()
    stderr = " ".join(capfd.readouterr().err.split())
    assert f"waiting for teacher.url {url} to answer, 0 s so far, at most 0.5 s" in stderr


def test_a_remote_service_gets_no_longer_because_a_local_one_loads(no_patience, capfd):
    """It had the three minutes of the local one."""
    with pytest.raises(UsageError, match=rf"teachers\.maths\.url: UNAVAILABLE: not ready within 0 s: .*{NOBODY}"):
        open_services(teachers={"maths": TeacherConfig(url=NOBODY)}, verifier=VerifierConfig(), patience=0).__enter__()
    assert "waiting for teachers.maths.url" in capfd.readouterr().err


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_a_service_of_another_kind_is_told_with_the_key(verifier, face):
    with pytest.raises(UsageError, match=r"^teacher\.url: a service answers that is no teacher; give the URL of one\."):
        open_services(teacher=TeacherConfig(url=getattr(verifier, face))).__enter__()


@pytest.mark.parametrize(
    ("face", "other", "hint"), [("grpc", "http", "write http://"), ("http", "grpc", "write grpc://")]
)
def test_a_port_that_speaks_another_protocol_is_told_with_the_one_to_write(no_patience, verifier, face, other, hint):
    url = getattr(verifier, other).replace(other, face, 1)
    with pytest.raises(UsageError, match=rf"^verifier\.url: .*{hint}"):
        open_services(verifier=VerifierConfig(url=url), patience=0.5).__enter__()


@pytest.mark.slow
def test_a_local_service_that_loads_has_a_waiting_line(no_patience, capfd):
    with open_services(verifier=VerifierConfig(url="local:"), patience=0):
        pass
    stderr = " ".join(capfd.readouterr().err.split())
    assert "waiting for verifier.url 'local:' to start, 0 s so far, at most 180 s" in stderr
    assert "for verifier.url 'local:' to start" in stderr.partition("waited")[2]
