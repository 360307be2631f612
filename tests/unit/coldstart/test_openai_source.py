"""Chat completions of an endpoint of OpenAI's API, over real HTTP: what is sent, and what becomes of each answer."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from vold_client import Internal, InvalidArgument, PermissionDenied, Unavailable
from vold_trainer.coldstart.openai import OpenAISource
from vold_trainer.config import TracesConfig, TrainConfig
from vold_trainer.errors import UsageError
from vold_trainer.sources.check import check_files

MESSAGES = [{"role": "user", "content": "1 + 1?"}]


def reply(message: dict, finish: str = "stop", **more) -> tuple[int, dict]:
    return 200, {"choices": [{"message": message, "finish_reason": finish}], **more}


def refusal(status: int, message: str, **fields) -> tuple[int, dict]:
    return status, {"error": {"message": message, **fields}}


@contextmanager
def endpoint(*replies) -> Iterator[tuple[str, list]]:
    """(the URL, the bodies that came): gives one reply after another, (status, JSON or bytes, headers)."""
    bodies: list = []
    waiting = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            bodies[-1]["authorization"] = self.headers["authorization"]
            self.answer(self.path == "/v1/chat/completions")

        def do_GET(self) -> None:
            self.answer(self.path == "/v1/models")

        def answer(self, known: bool) -> None:
            status, body, *headers = waiting.pop(0) if known and waiting else (404, {})
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"openai+http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url: str, *, key=None, waits: list | None = None, seed=2**63, model="m", **settings):
    """What the source makes of one request."""
    config = TracesConfig(out="t.jsonl", teacher={"url": url, "model": model, "timeout": 5}, keep="all", **settings)

    async def throttled(error, seconds) -> None:
        (waits if waits is not None else []).append(seconds)

    async def run():
        source = OpenAISource(url, config, key, None, throttled)
        try:
            described = await source.describe()
            return described, await source.answer(MESSAGES, seed)
        finally:
            await source.aclose()

    return asyncio.run(run())


def test_what_is_asked_and_what_is_made_of_the_answer():
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    with endpoint(reply({"content": "2"}, **usage)) as (url, bodies):
        described, answer = ask(url, key="secret", temperature=0.6, top_p=0.95, max_tokens=9)
    assert bodies == [
        {"model": "m", "messages": MESSAGES, "max_tokens": 9, "temperature": 0.6, "top_p": 0.95, "seed": 2**30,
         "authorization": "Bearer secret"}
    ]  # fmt: skip
    assert (described.identity.model, described.in_flight, described.seeded) == ("m", 0, True)
    assert (answer.text, answer.ids, answer.finish_reason) == ("2", None, "stop")
    assert (answer.tokens, answer.prompt_tokens) == (3, 7)


def test_the_body_takes_fields_and_leaves_some_out():
    with endpoint(reply({"content": "2"})) as (url, bodies):
        _, answer = ask(url, openai_body={"seed": None, "top_p": None, "reasoning_effort": "low"})
    assert set(bodies[0]) == {"model", "messages", "max_tokens", "temperature", "reasoning_effort", "authorization"}
    assert (answer.tokens, answer.prompt_tokens) == (None, None)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_beside_the_answer_is_part_of_the_trace(name):
    with endpoint(reply({"content": "2", name: "1 and 1\n"}), reply({"content": "", name: "1 and"}, "length")) as (
        url,
        _,
    ):
        assert ask(url)[1].text == "<think>\n1 and 1\n</think>\n\n2"
        assert ask(url)[1].text == ""


def test_models_that_want_the_newer_name_of_the_limit_get_it():
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with endpoint(refusal(400, said, code="unsupported_parameter"), reply({"content": "2"})) as (url, bodies):
        assert ask(url, max_tokens=5)[1].text == "2"
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 5]
    assert "max_tokens" not in bodies[1]


def test_refusals_for_now_are_waited_for():
    waits: list = []
    busy = refusal(429, "slow down")
    with endpoint((*busy, ("retry-after", "1.5")), busy, busy, reply({"content": "2"})) as (url, bodies):
        assert ask(url, waits=waits)[1].text == "2"
    assert waits == [2.0, 2.0, 4.0]
    assert len(bodies) == 4


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (
            refusal(429, "see your plan" * 50, code="insufficient_quota"),
            UsageError,
            "insufficient_quota: see your plan",
        ),
        (refusal(400, "no such thing", code="bad"), InvalidArgument, "bad: no such thing"),
        (refusal(401, "who are you", code="key"), UsageError, "who are you.* variable VOLD_TEACHER_API_KEY"),
        (refusal(500, "oh"), Unavailable, "oh"),
        ((502, b"<html>"), Unavailable, "HTTP 502"),
        ((200, b"<html>"), Internal, "is this the base URL"),
        ((200, {"choices": []}), Internal, r"no choices\[0\]\.message"),
        (reply({"content": [1]}), Internal, r"no choices\[0\]\.message"),
    ],
)
def test_what_an_endpoint_may_answer_instead(answer, kind, said):
    with endpoint(answer) as (url, _), pytest.raises(kind, match=said) as raised:
        ask(url, key="secret")
    assert "secret" not in str(raised.value)


def test_a_key_that_was_accepted_may_be_replaced_while_the_endpoint_is_away():
    with endpoint(reply({"content": "2"}), refusal(403, "gone")) as (url, _):

        async def run() -> None:
            config = TracesConfig(out="t.jsonl", teacher={"url": url, "model": "m"}, keep="all")
            source = OpenAISource(url, config, "key", None, None)
            await source.answer(MESSAGES, None)
            with pytest.raises(PermissionDenied, match="gone"):
                await source.answer(MESSAGES, None)
            await source.ready(5)  # it has no list of models
            await source.aclose()

        asyncio.run(run())


def test_nobody_there():
    with endpoint() as (url, _):
        pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        ask(url)


def test_a_key_that_changes_is_read_again():
    keys = iter(["old", "new"])
    with endpoint(refusal(401, "old"), reply({"content": "2"})) as (url, bodies):
        assert ask(url, key=lambda: next(keys))[1].text == "2"
    assert [body["authorization"] for body in bodies] == ["Bearer old", "Bearer new"]


def test_without_a_name_the_only_model_is_meant():
    models = [{"data": [{"id": "a"}]}, {"data": [{"id": "a"}, {"id": "b"}]}]
    with endpoint((200, models[0]), reply({"content": "2"}), (200, models[1])) as (url, bodies):
        assert ask(url, model="")[0].identity.model == bodies[0]["model"] == "a"
        with pytest.raises(UsageError, match=r"teacher.model is empty, and .* has a, b: set it to one"):
            ask(url, model="")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("openai+http://", "is no base URL"),
        ("openai+https://host/v1/chat/completions", "is no base URL: write openai"),
        ("openai+https://host:no/v1", "cannot be read"),
        ("openai+https://me:secret@host/v1", "holds credentials: name the key's variable"),
        ("openai+https://host/v1, grpc://host:1", "'grpc://host:1' is among endpoints of OpenAI's API"),
    ],
)
def test_a_wrong_url_is_told_before_anything_begins(url, said, tmp_path):
    config = TracesConfig(out=tmp_path / "t.jsonl", teacher={"url": url}, keep="all", data={"limit": 4})
    with pytest.raises(UsageError, match=said) as raised:
        check_files(config)
    assert "secret" not in str(raised.value)


def test_training_needs_a_teacher_with_log_probabilities(tmp_path):
    config = TrainConfig(out=tmp_path, student={"path": "pocket:student"}, teacher={"url": "openai+https://host/v1"})
    with pytest.raises(
        UsageError, match="gives text and no log-probabilities, so that it is a source of `vold traces`"
    ):
        check_files(config)
