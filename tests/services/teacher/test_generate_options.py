"""min_p, stop texts and variables of the chat template, on both faces of a real teacher with a byte tokenizer."""

import json

import httpx
import pytest
from openai_fixtures import SENTENCE, save_teacher
from teacher_fixtures import teacher_server
from vold_client import InvalidArgument, TeacherClient
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import TracesConfig
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.student.added_tokens import read_tokens

TEMPLATE = (
    "{% for m in messages %}<user>{{ m.content }}{% endfor %}"
    "{% if shout is defined %}{{ shout }}:{{ times }}:{{ deep.er[0] }}{% endif %}<assistant>"
    "{% if 'nothing' in messages[0].content %}" + SENTENCE + "{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder):
    with teacher_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def templated(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("templated") / "tiny"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    with teacher_server(copy) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def client(request, teacher):
    with TeacherClient(url(teacher, request.param)) as client:
        yield client


def url(server, face: str) -> str:
    return server.http if face == "http" else f"grpc://{server.grpc}"


PROMPT = list(b"Say: ")
MESSAGES = [{"role": "user", "content": "Say it"}]


def say(client: TeacherClient, **options: object):
    options = {"max_tokens": 80, "temperature": 0.0} | options
    return list(client.generate([MESSAGES], **options))


@pytest.mark.parametrize("stop", [["END"], ["never", " it", "of"], ["🐻"], ["蜜"], [SENTENCE[:3]], ["\U0001f36f!"]])
def test_a_completion_ends_at_its_first_stop_text(client, stop):
    (whole,) = say(client)
    assert whole.text == SENTENCE
    (ended,) = say(client, stop=stop)
    first = min(place for text in stop if (place := SENTENCE.find(text)) >= 0)
    assert ended.text == SENTENCE[:first]
    assert ended.finish_reason == "stop"
    assert ended.ids.tolist() == whole.ids[: len(ended.ids)].tolist()
    assert ended.logprobs == pytest.approx(whole.logprobs[: len(ended.ids)], abs=1e-4)
    # No token after the one that completes the stop text: of bytes, as many as the text has up to there.
    text = next(text for text in stop if SENTENCE.find(text) == first)
    assert len(ended.ids) == len((SENTENCE[:first] + text).encode())


def test_a_stop_text_that_does_not_come_changes_nothing(client):
    (whole,), (other,) = say(client), say(client, stop=["absent", "🐼"])
    assert (other.text, other.ids.tolist(), other.finish_reason) == (whole.text, whole.ids.tolist(), "stop")
    (cut,) = say(client, stop=["END"], max_tokens=4)
    assert (cut.finish_reason, len(cut.ids), cut.text) == ("length", 4, "Ein ")


def test_the_rows_of_a_request_end_one_by_one(client):
    completions = list(
        client.generate([MESSAGES, MESSAGES], n=3, max_tokens=70, temperature=1.5, seed=4, stop=["a", "e", "i"])
    )
    assert len(completions) == 6
    for completion in completions:
        assert not {"a", "e", "i"} & set(completion.text)
    again = list(
        client.generate([MESSAGES, MESSAGES], n=3, max_tokens=70, temperature=1.5, seed=4, stop=["a", "e", "i"])
    )
    key = {(each.prompt, each.index): each.ids.tolist() for each in completions}
    assert {(each.prompt, each.index): each.ids.tolist() for each in again} == key


def test_tokens_that_are_streamed_end_at_a_stop_text_too(teacher):
    body = {
        "prompts": [{"messages": MESSAGES}],
        "options": {"max_tokens": 80, "temperature": 0, "stop": ["END"], "stream_tokens": True},
        "stream": True,
    }
    with httpx.stream("POST", f"{teacher.http}/v1/generate", json=body) as response:
        events = [json.loads(line) for line in response.iter_lines()]
    assert len(events) > 20
    assert [event["finished"] for event in events] == [False] * (len(events) - 1) + [True]
    assert (events[-1]["finish_reason"], events[-1]["text"]) == ("stop", SENTENCE[: SENTENCE.find("END")])


def test_min_p_of_1_is_greedy_at_any_temperature_and_0_is_none(client):
    (greedy,) = say(client)
    (only,) = say(client, temperature=2.0, min_p=1.0, seed=1)
    assert only.ids.tolist() == greedy.ids.tolist()
    (free,), (none,) = say(client, temperature=3.0, seed=1, min_p=0.0), say(client, temperature=3.0, seed=1)
    assert free.ids.tolist() == none.ids.tolist() != greedy.ids.tolist()


@pytest.mark.parametrize("face", ["grpc", "http", "openai"])
def test_variables_reach_the_chat_template(templated, face):
    variables = {"shout": "hey", "times": 3, "deep": {"er": [True]}}
    if face == "openai":
        body = {"messages": MESSAGES, "max_tokens": 1, "chat_template_kwargs": variables, "return_token_ids": True}
        reply = httpx.post(f"{templated.http}/v1/chat/completions", json=body).json()
        ids = reply["prompt_token_ids"]
    else:
        with TeacherClient(url(templated, face)) as client:
            (generation,) = say(client, max_tokens=1, chat_template_kwargs=variables)
            (plain,) = say(client, max_tokens=1)
        assert generation.error is None
        ids = generation.prompt_ids.tolist()
        assert len(ids) - len(plain.prompt_ids) == len("hey:3:True")
    text = httpx.post(f"{templated.http}/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text == "<user>Say ithey:3:True<assistant>"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_p": -0.1}, "options.min_p is -0.1"),
        ({"min_p": 1.1}, "options.min_p is 1.1"),
        ({"min_p": float("nan")}, "options.min_p is nan"),
        ({"stop": ["a"] * 65}, "65 texts: at most 64"),
        ({"stop": ["a", ""]}, r"options.stop\[1\] has 0 characters"),
        ({"stop": ["a" * 1001]}, "1001 characters"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "'chat_template', which the service sets itself"),
        ({"chat_template_kwargs": {"tokenize": False}}, "which the service sets itself"),
        ({"chat_template_kwargs": {"messages": []}}, "which the service sets itself"),
        ({"chat_template_kwargs": {"a": "b" * 5000}}, "at most 4096"),
        ({"chat_template_kwargs": {"a": float("nan")}}, "cannot be read"),
    ],
)
def test_options_that_cannot_be_served_are_refused(client, options, words):
    with pytest.raises(InvalidArgument, match=words):
        say(client, **options)


def test_variables_without_messages_are_refused(client):
    with pytest.raises(InvalidArgument, match="no prompt has messages"):
        list(client.generate([PROMPT], max_tokens=1, chat_template_kwargs={"a": 1}))


def test_the_openai_route_takes_min_p(teacher):
    body = {"messages": MESSAGES, "max_tokens": 80, "temperature": 2.0, "min_p": 1.0}
    reply = httpx.post(f"{teacher.http}/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["message"]["content"] == SENTENCE
    reply = httpx.post(f"{teacher.http}/v1/chat/completions", json=body | {"min_p": 2})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "min_p")


def test_a_teacher_that_ends_at_once_leaves_no_trace(templated, folder, tmp_path):
    """Its completion has no text, which no student can learn from."""
    rows = [{"id": str(number), "prompt": text, "reference": ""} for number, text in enumerate(("Say it", "nothing"))]
    write_lines(tmp_path / "rows.jsonl", rows)

    def traces(**data):
        config = {"teacher": {"url": templated.http}, "data": {"source": str(tmp_path / "rows.jsonl"), **data}}
        return TracesConfig(
            **config, out=tmp_path / "traces.jsonl", keep="all", verifier=None, temperature=0, max_tokens=90
        )

    summary = run_traces(traces())
    assert (summary.requested, summary.written, summary.dropped) == (2, 1, {"empty": 1})
    (row,) = read_json_lines(tmp_path / "traces.jsonl")
    assert row["id"] == "0-0"
    assert row["completion"]
    assert read_tokens(str(tmp_path / "traces-tokens.json")) == read_tokens(str(folder)), "beside what it wrote"
    with pytest.raises(RunError, match=r"not one of 1 traces was kept \(1 empty\)"):
        run_traces(traces(offset=1))
