"""Several teachers in one service: routed by name, loaded and unloaded while it runs."""

import concurrent.futures
import contextlib
import shutil

import httpx
import numpy as np
import pytest
import torch
from teacher_fixtures import VOCAB, Server, make_model, save_model, teacher_server
from typer.testing import CliRunner
from vold_client import Completion, NotFound, TeacherClient
from vold_teacher.cli import app

IDS = np.random.default_rng(0).integers(6, VOCAB, 12)
PROMPT, COMPLETION = IDS[:4], IDS[4:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    return {
        name: save_model(root / name, family, seed)
        for name, family, seed in (("small", "qwen3", 0), ("other", "llama", 1), ("third", "qwen3", 2))
    }


@pytest.fixture(scope="module")
def server(folders):
    root = folders["small"].parent
    options = ("--model", f"second={folders['other']}", "--models-dir", str(root))
    with teacher_server(folders["small"], *options) as server:
        yield server


def logprobs(server: Server, model: str = "") -> np.ndarray:
    with TeacherClient(f"grpc://{server.grpc}", model=model) as teacher:
        return teacher.score([PROMPT], [Completion(0, COMPLETION)]).scores[0].logprobs


def expected(family: str, seed: int) -> np.ndarray:
    with torch.inference_mode():
        logits = make_model(family, seed)(torch.tensor(IDS)[None]).logits[0].float()
    chosen = logits.log_softmax(-1)[range(len(PROMPT) - 1, len(IDS) - 1), COMPLETION]
    return chosen.numpy()


def test_each_model_answers_by_its_name_and_the_first_where_none_is_given(server):
    listed = httpx.get(f"{server.http}/v1/models").json()["data"]
    assert [model["id"] for model in listed][:2] == ["small", "second"]
    np.testing.assert_allclose(logprobs(server), expected("qwen3", 0), atol=1e-5)
    np.testing.assert_allclose(logprobs(server, "small"), expected("qwen3", 0), atol=1e-5)
    np.testing.assert_allclose(logprobs(server, "second"), expected("llama", 1), atol=1e-5)
    prints = {
        name: httpx.get(f"{server.http}/v1/info", params={"model": name}).json()["identity"]["weights_fingerprint"]
        for name in ("small", "second")
    }
    assert prints["small"] != prints["second"]


def test_an_unknown_model_is_named_with_those_that_are_there(server):
    with pytest.raises(NotFound, match="'absent' here: ask for one of 'small', 'second'"):
        logprobs(server, "absent")


def test_a_model_comes_and_goes_while_the_others_serve(server):
    body = {"name": "guest", "path": "third"}
    loaded = httpx.post(f"{server.http}/v1/models/load", json=body, timeout=60)
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["identity"]["model"] == "guest"
    np.testing.assert_allclose(logprobs(server, "guest"), expected("qwen3", 2), atol=1e-5)
    again = httpx.post(f"{server.http}/v1/models/load", json=body)
    assert again.status_code == 422
    assert "served already" in again.json()["error"]["message"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # what is under way when a model goes is still answered
        under_way = [pool.submit(logprobs, server, "guest") for _ in range(4)]
        gone = httpx.post(f"{server.http}/v1/models/unload", json={"name": "guest"}, timeout=60)
        for future in under_way:
            with contextlib.suppress(NotFound):  # where it came too late
                np.testing.assert_allclose(future.result(), expected("qwen3", 2), atol=1e-5)
    assert gone.status_code == 200
    assert "guest" not in [model["id"] for model in gone.json()["data"]]
    with pytest.raises(NotFound):
        logprobs(server, "guest")
    np.testing.assert_allclose(logprobs(server), expected("qwen3", 0), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({"name": "x", "path": "../outside"}, "path", "outside of the server's --models-dir"),
        ({"name": "x", "path": "/etc"}, "path", "outside of the server's --models-dir"),
        ({"name": "x", "path": "absent"}, "path", "there is no such folder"),
        ({"name": "", "path": "third"}, "name", "name is empty"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(server, body, field, text):
    response = httpx.post(f"{server.http}/v1/models/load", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["field"] == field
    assert text in response.json()["error"]["message"]


def test_a_server_without_a_models_folder_loads_nothing(folders):
    with teacher_server(folders["small"]) as server:
        response = httpx.post(f"{server.http}/v1/models/load", json={"name": "x", "path": "third"})
        assert response.status_code == 403
        assert "--models-dir" in response.json()["error"]["message"]
        last = httpx.post(f"{server.http}/v1/models/unload", json={"name": "small"})
        assert last.status_code == 422
        assert "the only model" in last.json()["error"]["message"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "{small}", "--model", "{small}"], "names"),
        (["--model", "a={small}", "--model", "a={other}"], "'a' names"),
        (["--model", "a={small}", "--model", "b={other}", "--name", "c"], "write --model NAME=FOLDER for each"),
        (["--model", "a="], "write FOLDER or NAME=FOLDER"),
        ([], "--model"),
    ],
)
def test_models_that_cannot_be_told_apart_end_the_command(folders, options, text):
    filled = [option.format(**folders) for option in options]
    result = CliRunner().invoke(app, ["serve", *filled])
    assert result.exit_code == 1
    assert text in result.output


def test_a_model_that_breaks_while_loading_harms_nobody(server, folders):
    broken = folders["small"].parent / "broken"
    shutil.copytree(folders["third"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    response = httpx.post(f"{server.http}/v1/models/load", json={"name": "broken", "path": "broken"}, timeout=60)
    assert response.status_code == 422
    assert "cannot read the weights" in response.json()["error"]["message"]
    np.testing.assert_allclose(logprobs(server), expected("qwen3", 0), atol=1e-5)
