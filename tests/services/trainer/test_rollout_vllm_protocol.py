"""vLLM rollouts against a small HTTP server that sends replies in vLLM's format, right and wrong.

The server stands in for the protocol only; test_rollout_vllm.py runs a real vLLM.
"""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from paths import HELPERS
from safetensors.torch import load_file
from upstream_fixtures import free_port
from vold_trainer.config import RolloutConfig, StudentConfig, TokenConfig
from vold_trainer.data.faults import RowError
from vold_trainer.errors import RunError, UsageError
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout import vllm, vllm_server
from vold_trainer.rollout.base import Sampling
from vold_trainer.rollout.engines import make_engine
from vold_trainer.rollout.vllm_requests import row_seed
from vold_trainer.rollout.weights import FanOutClient, checkpoint_tensors
from vold_trainer.services import readiness
from vold_trainer.student.models import load_student

PROMPTS = make_examples("train", 3, modality="text")
PICTURES = make_examples("train", 2, modality="image")
SAMPLING = Sampling(group=2, max_tokens=8, logprobs=True)


@dataclass
class StandIn:
    """A stand-in for vLLM. answers: replies by route, each used once in place of the normal reply; None for the normal
    reply. requests: (route, body), in order. keys: (route, authorization header), in order. change: applied to each
    completion. reads: prompt ids of chat messages.
    """

    tokenizer: Any
    settings: dict[str, Any]
    url: str = ""
    answers: dict[str, list[Any]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    keys: list[tuple[str, str | None]] = field(default_factory=list)
    weight_version: str = "default"
    weights: dict[str, Any] = field(default_factory=dict)
    change: Callable[[dict[str, Any]], None] = lambda answer: None
    reads: Callable[[Any], list[int]] = lambda messages: []
    lock: Any = field(default_factory=threading.Lock)

    def bodies(self, route: str) -> list[Any]:
        return [body for requested, body in self.requests if requested == route]

    def answer(self, route: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            self.requests.append((route, body))
            if self.answers.get(route):
                planned = self.answers[route].pop(0)
                if planned is not None:
                    return planned
        match route:
            case "/v1/models":
                return 200, {"data": [{"id": "tiny", "parent": None, "max_model_len": 200}]}
            case "/server_info":
                return 200, {"vllm_config": self.settings}
            case "/version":
                return 200, {"version": "0.32.0"}
            case "/get_world_size":
                return 200, {"world_size": 2}
            case "/tokenize":
                return 200, {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
            case "/weight_info":
                return 200, {"weight_version": self.weight_version}
            case "/update_weight_version":
                self.weight_version = body["new_version"]
                return 200, {"success": True}
            case "/collective_rpc":
                self.weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                return 200, {"results": [None]}
            case "/v1/completions" | "/v1/chat/completions":
                prompt = body["prompt"] if "prompt" in body else self.reads(body["messages"])
                answer = completion(prompt, body, self.tokenizer)
                self.change(answer)
                return 200, answer
        return 200, {}


def completion(prompt: list[int], body: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A completion of three tokens that depend on the seed."""
    ids = [20 + body["seed"] % 7, 30, tokenizer.eos_token_id]
    names = [f"token_id:{token}" for token in ids]
    common = {"finish_reason": "stop", "token_ids": ids}
    if "prompt" in body:
        tops = [{name: -0.5, **{f"token_id:{9 - k}": -1.0 - k for k in range(body["logprobs"])}} for name in names]
        logprobs = {"tokens": names, "token_logprobs": [-0.5] * 3, "top_logprobs": tops}
        return {"choices": [{**common, "logprobs": logprobs, "prompt_token_ids": prompt}]}
    content = [{"token": name, "logprob": -0.5, "top_logprobs": []} for name in names]
    return {"choices": [{**common, "logprobs": {"content": content}}], "prompt_token_ids": prompt}


@contextlib.contextmanager
def serving(stand_in: StandIn):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            stand_in.keys.append((self.path.partition("?")[0], self.headers.get("authorization")))
            text = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, answer = stand_in.answer(self.path.partition("?")[0], json.loads(text) if text else None)
            if status == 0:  # hang up
                self.close_connection = True
                return
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def student():
    return load_student(StudentConfig(path="pocket:teacher"))


@pytest.fixture
def stand_in(student):
    model = {"max_logprobs": 20, "logprobs_mode": "raw_logprobs"}
    with serving(StandIn(student.tokenizer, {"model_config": model, "weight_transfer_config": None})) as server:
        yield server


@contextlib.contextmanager
def engine_on(student, *servers: StandIn, **options):
    engine = make_engine(RolloutConfig(engine="vllm", url=[server.url for server in servers], **options), student)
    try:
        yield engine
    finally:
        engine.close()


def test_requests_carry_all_sampling_parameters(student, stand_in):
    with engine_on(student, stand_in) as engine:
        rollouts = engine.generate(PROMPTS, Sampling(group=2, max_tokens=8, candidates=2), seed=7, first_row=4)
        engine.sync(3)
        engine.generate(PROMPTS[:1], SAMPLING, seed=8)
    bodies = {body["seed"]: body for body in stand_in.bodies("/v1/completions")[:6]}
    assert set(bodies) == {row_seed(7, row) for row in range(4, 10)}
    for index, rollout in enumerate(rollouts):
        body = bodies[row_seed(7, 4 + index)]
        assert body["prompt"] == list(rollout.prompt_ids) == student.prompt_ids([PROMPTS[index // 2]])[0]
        assert (body["n"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0.0, 1.0)
        assert (body["ignore_eos"], body["stop_token_ids"]) == (True, student.eos_ids)
        assert rollout.row == 4 + index
        assert rollout.ids == (20 + body["seed"] % 7, 30, student.tokenizer.eos_token_id)
        np.testing.assert_array_equal(rollout.logprobs, np.float32([-0.5] * 3))
        assert [row.tolist() for row in rollout.candidates] == [[token, 9] for token in rollout.ids]
    routes = [route for route, _ in stand_in.requests if route not in ("/v1/completions", "/weight_info")]
    steps = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/reset_encoder_cache", "/update_weight_version"]
    assert routes[-12:] == 2 * [*steps, "/resume"]  # before the first generate, and on sync
    assert engine.version == 3
    assert stand_in.weights.keys() == checkpoint_tensors(student).keys()
    assert not Path(stand_in.bodies("/collective_rpc")[0]["kwargs"]["weights_path"]).parent.exists()


def test_a_server_gets_the_rows_of_added_tokens_in_their_matrix_and_has_to_have_the_tokens(student, stand_in):
    token = TokenConfig(id=len(student.tokenizer), content="<mark>")
    config = StudentConfig(path="pocket:teacher", add_tokens=[token], freeze=["embeddings"])
    added = load_student(config)
    with pytest.raises(UsageError, match="whose tokenizer is not that of the student"), engine_on(added, stand_in):
        pass
    with serving(StandIn(added.tokenizer, stand_in.settings)) as server, engine_on(added, server) as engine:
        engine.sync(1)
        assert server.weights.keys() == checkpoint_tensors(student).keys()
        assert len(server.weights["model.embed_tokens.weight"]) == token.id + 1


def test_several_servers_share_the_prompts_and_all_get_the_weights(student, stand_in):
    with (
        serving(StandIn(stand_in.tokenizer, stand_in.settings)) as second,
        engine_on(student, stand_in, second) as engine,
    ):
        rollouts = engine.generate(PROMPTS, SAMPLING, seed=0)
        assert [rollout.row for rollout in rollouts] == list(range(6))
        prompts = [tuple(ids) for ids in student.prompt_ids(PROMPTS)]
        for server, expected in ((stand_in, [0, 0, 2, 2]), (second, [1, 1])):
            served = sorted(prompts.index(tuple(body["prompt"])) for body in server.bodies("/v1/completions"))
            assert served == expected
            assert len(server.bodies("/collective_rpc")) == 1
        FanOutClient(
            engine.servers, [info.world_size for info in engine.infos], engine.tasks
        ).init_weight_transfer_engine({"rank_offset": 1, "world_size": 5})
        for server, offset in ((stand_in, 1), (second, 3)):
            (body,) = server.bodies("/init_weight_transfer_engine")
            assert body == {"init_info": {"rank_offset": offset, "world_size": 5}}


def test_images_are_sent_as_messages_and_the_prompt_ids_have_to_match(stand_in):
    student = load_student(StudentConfig(path="pocket:student"))
    with engine_on(student, stand_in) as engine:
        prompts = student.prompt_ids(PICTURES)
        texts = [picture.prompt_text.removeprefix("[image]") for picture in PICTURES]

        def read(messages: Any) -> list[int]:
            parts = [part.get("text") for part in messages[-1]["content"]]
            return prompts[next(index for index, text in enumerate(texts) if text in parts)]

        stand_in.reads = read
        rollouts = engine.generate(PICTURES, SAMPLING, seed=0)
        assert [list(rollout.prompt_ids) for rollout in rollouts] == [ids for ids in prompts for _ in range(2)]
        assert all(rollout.logprobs is not None for rollout in rollouts)
        body = stand_in.bodies("/v1/chat/completions")[0]
        pictures = [part for message in body["messages"] for part in message["content"] if part["type"] == "image_url"]
        assert pictures[0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        assert body["logit_bias"] == {str(token): -100.0 for token in student.banned_ids}
        stand_in.reads = lambda messages: [*read(messages)[:5], 9]
        with pytest.raises(RunError, match=r"vLLM read a prompt of 6 tokens, the student's processor makes \d+ of it"):
            engine.generate(PICTURES, SAMPLING, seed=0)


BROKEN = {
    "no ids": (lambda choice: choice.pop("token_ids"), "no token_ids and prompt_token_ids"),
    "empty": (lambda choice: choice.update(token_ids=[]), "no token_ids and prompt_token_ids"),
    "short": (lambda choice: choice["logprobs"]["tokens"].pop(), "log-probabilities of 2 tokens that are not the 3"),
    "null": (lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(1, None), "not a finite number"),
    "other prompt": (lambda choice: choice.update(prompt_token_ids=[1, 2]), "vLLM read a prompt of 2 tokens"),
    "no logprobs": (lambda choice: choice.update(logprobs=None), "is not that of vLLM 0.31 to 0.33"),
    "aborted": (lambda choice: choice.update(finish_reason="abort"), "a completion ended with 'abort', three times"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_reply_stops_the_run(student, stand_in, name, monkeypatch):
    monkeypatch.setattr(vllm_server, "ABORTED_SECONDS", 0.01)
    change, message = BROKEN[name]
    stand_in.change = lambda answer: change(answer["choices"][0])
    with engine_on(student, stand_in) as engine, pytest.raises(RunError, match=message):
        engine.generate(PROMPTS, SAMPLING, seed=0)


def test_a_prompt_that_a_server_refuses_costs_its_own_group_alone(student, stand_in):
    """One that is too long by the server's own limit is not sent; one may be refused for one completion of its two."""
    long = replace(PROMPTS[1], messages=({"role": "user", "content": "3 + " * 60},), where="rows.jsonl:2")
    examples = [PROMPTS[0], long, PROMPTS[2], *make_examples("train", 1, modality="text", offset=3)]
    refused = (400, {"error": {"message": "This model's maximum context length is 200 tokens"}})
    with engine_on(student, stand_in) as engine:
        whole = {r.row: r.ids for r in engine.generate(examples[2:], SAMPLING, seed=3, first_row=14)}
        engine.generate(PROMPTS[:1], SAMPLING, seed=3, first_row=10)
        stand_in.requests.clear()
        stand_in.answers["/v1/completions"] = [refused]
        faults, finished = {}, []
        rollouts = engine.generate(
            examples, SAMPLING, seed=3, first_row=10, on_fault=faults.__setitem__, on_finished=finished.extend
        )
        assert len(stand_in.bodies("/v1/completions")) == 6
        (other,) = faults.keys() - {1}
        expected = [row for row in range(10, 18) if (row - 10) // 2 not in faults]
        assert [r.row for r in rollouts] == expected
        assert {r.row for r in finished} >= set(expected)
        assert all(whole.get(r.row, r.ids) == r.ids for r in rollouts)
        assert (faults[1].kind, faults[other].kind) == ("too long", "refused")
        assert "rows.jsonl:2: row " in str(faults[1])
        assert "more than the 200 of rollout.url" in str(faults[1])
        assert "maximum context length" in str(faults[other])
        stand_in.answers["/v1/completions"] = [refused]
        with pytest.raises(RowError, match=r"maximum context length.*Mend the row, or set data\.skip_broken=true"):
            engine.generate(PROMPTS, SAMPLING, seed=3)
        with pytest.raises(RowError, match=r"rows\.jsonl:2: row .* lower rollout\.max_tokens, or start the server"):
            engine.generate(examples, SAMPLING, seed=3)


@pytest.mark.parametrize("fault", [(503, {"error": "busy"}), (500, b"oops"), (0, None), (429, {"detail": "later"})])
def test_temporary_errors_are_retried(student, stand_in, fault):
    stand_in.answers["/v1/completions"] = [fault, None, fault, fault]
    with engine_on(student, stand_in) as engine:
        assert [r.row for r in engine.generate(PROMPTS, SAMPLING, seed=0)] == list(range(6))


def test_a_server_that_stays_away_stops_the_run_without_rollouts(student, stand_in, monkeypatch):
    monkeypatch.setattr(vllm_server, "RETRY_SECONDS", 0.4)
    with engine_on(student, stand_in) as engine:
        engine.sync(0)
        stand_in.answers["/v1/completions"] = [(503, {"error": {"message": "engine is dead"}})] * 1000
        finished: list[Any] = []
        with pytest.raises(RunError, match=rf"rollout\.url {stand_in.url}.*503: engine is dead.*still running there"):
            engine.generate(PROMPTS, SAMPLING, seed=0, on_finished=finished.extend)
        assert not finished
        stand_in.answers.clear()
        assert len(engine.generate(PROMPTS, SAMPLING, seed=0)) == 6  # the engine still works


def test_a_failed_weight_transfer_is_not_repeated(student, stand_in, tmp_path):
    with engine_on(student, stand_in, weights_folder=tmp_path) as engine:
        stand_in.answers["/collective_rpc"] = [(500, {"error": {"message": "Repo id must be in the form"}})]
        with pytest.raises(RunError, match=r"Repo id must .*vLLM has to see that folder .*rollout\.weights_folder"):
            engine.generate(PROMPTS, SAMPLING, seed=0)
        assert len(stand_in.bodies("/collective_rpc")) == 1
        assert not stand_in.bodies("/resume")  # a server with half of the new weights stays paused


def test_a_server_with_other_weights_than_the_last_ones_sent_stops_the_run(student, stand_in):
    with engine_on(student, stand_in) as engine:
        engine.generate(PROMPTS, SAMPLING, seed=0)
        stand_in.weight_version = "default"  # it was restarted
        with pytest.raises(
            RunError, match=r"generates with weights 'default', and was sent 'vold-\w+-0': it was restarted"
        ):
            engine.generate(PROMPTS, SAMPLING, seed=0)


def test_the_main_process_sends_the_weights_and_all_processes_raise_on_failure(stand_in, tmp_path):
    stand_in.answers["/collective_rpc"] = [None, None, (500, {"error": "no space left"})]
    script = str(HELPERS / "rollout_process.py")
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        programs.start([sys.executable, script, stand_in.url, str(tmp_path)], env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(240) for process in processes] == [0, 0]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [process["rows"] for process in results] == [[0], [1]]
    assert results[0]["label"] == results[1]["label"]
    assert [process["version"] for process in results] == [1, 1]
    assert all("no space left" in process["error"] for process in results)
    assert len(stand_in.bodies("/collective_rpc")) == 3
    assert len(stand_in.bodies("/v1/completions")) == 4


REFUSED = {
    "key": ("/v1/models", (401, {"error": "Unauthorized"}), "401 Unauthorized.*VOLD_ROLLOUT_API_KEY"),
    "no dev mode": (
        "/server_info",
        (404, {"detail": "Not Found"}),
        "no route /server_info: start it as `VLLM_SERVER_DEV",
    ),
    "another product": ("/v1/models", (200, {"data": []}), "the settings are not those of vLLM 0.31 to 0.33"),
    "no JSON": ("/v1/models", (200, b"<html>"), "answered no JSON"),
    "another tokenizer": ("/tokenize", (200, {"tokens": [1, 2]}), "whose tokenizer is not that of the student"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_that_cannot_serve_the_student_is_refused_at_the_start(student, stand_in, name):
    route, answer, message = REFUSED[name]
    stand_in.answers[route] = [answer]
    with pytest.raises(UsageError, match=message), engine_on(student, stand_in):
        pass


@pytest.mark.parametrize("url", ["grpc://a:1", "", "local:,local:", "http://a:1,ftp://b"])
def test_invalid_urls_are_refused(student, url):
    with pytest.raises(UsageError, match=r"rollout\.url is .*give http://HOST:PORT"):
        make_engine(RolloutConfig(engine="vllm", url=url), student)


def test_a_url_with_the_beginning_of_the_routes_is_refused(student):
    with pytest.raises(UsageError, match=r"rollout\.url http://a:1/v1 ends in /v1, which the trainer adds to it"):
        make_engine(RolloutConfig(engine="vllm", url="http://a:1/v1/"), student)


def test_a_server_that_cannot_be_reached_is_refused(student):
    with pytest.raises(UsageError, match=r"rollout\.url http://127\.0\.0\.1:1: it cannot be reached.*still running"):
        make_engine(RolloutConfig(engine="vllm", url="http://127.0.0.1:1"), student)


def test_a_server_that_never_answers_is_refused_after_a_waiting_line(student, monkeypatch, capfd):
    monkeypatch.setattr(vllm, "HANDSHAKE_SECONDS", 0.2)
    monkeypatch.setattr(readiness, "WAITING_LINE_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UsageError, match=rf"rollout\.url {url}: no answer within 0\.2 s"):
            make_engine(RolloutConfig(engine="vllm", url=url), student)
    assert f"waiting for rollout.url {url} to answer, 0 s so far, at most 0.2 s" in " ".join(
        capfd.readouterr().err.split()
    )


def test_a_key_that_is_replaced_in_its_file_is_taken_at_the_next_refusal(student, stand_in, tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("old")
    monkeypatch.setattr(vllm_server, "RETRY_SECONDS", 0)  # a refusal that is not answered with the new key is an error
    with engine_on(student, stand_in, api_key_file=file) as engine:
        engine.generate(PROMPTS[:1], SAMPLING, seed=0)
        file.write_text("new")
        stand_in.answers["/v1/completions"] = [(401, {"error": "Unauthorized"})]
        assert len(engine.generate(PROMPTS[:1], SAMPLING, seed=0)) == SAMPLING.group
    keys = [key for route, key in stand_in.keys if route == "/v1/completions"]
    assert keys[:2] == ["Bearer old"] * 2
    assert sorted(keys[2:]) in (["Bearer new", "Bearer new", "Bearer old"], ["Bearer new"] + 2 * ["Bearer old"])


def test_a_key_that_is_revoked_for_good_stops_the_run(student, stand_in, monkeypatch):
    monkeypatch.setenv("VOLD_ROLLOUT_API_KEY", "secret")
    monkeypatch.setattr(vllm_server, "RETRY_SECONDS", 0)
    with engine_on(student, stand_in) as engine:
        engine.generate(PROMPTS[:1], SAMPLING, seed=0)
        stand_in.answers["/v1/completions"] = [(401, {"error": "Unauthorized"})] * 2
        message = (
            r"rollout\.url .*401 Unauthorized.*variable VOLD_ROLLOUT_API_KEY \(rollout\.api_key_env\), which is set"
        )
        with pytest.raises(RunError, match=message) as caught:
            engine.generate(PROMPTS[:1], SAMPLING, seed=0)
    assert "secret" not in str(caught.value)


def test_unsupported_weight_transfers_are_refused(student, stand_in, monkeypatch):
    with pytest.raises(UsageError, match=r"rollout\.weights.*nccl.* use rollout\.weights=disk"):
        make_engine(RolloutConfig(engine="vllm", url=stand_in.url, weights="nccl"), student)
    monkeypatch.setattr("vold_trainer.rollout.weights._missing_requirement", lambda student, method: "")
    with pytest.raises(
        UsageError, match=r"was started for None: start it with --weight-transfer-config '\{\"backend\": \"nccl\"\}'"
    ):
        make_engine(RolloutConfig(engine="vllm", url=stand_in.url, weights="nccl"), student)


def test_seeds_of_rows_and_steps_are_all_different():
    seeds = {row_seed(seed, row) for seed in range(50) for row in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 1 << 63 for seed in seeds)
