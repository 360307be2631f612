"""Clients that others wrote, pointed at a real server unchanged: openai, TRL and lm-evaluation-harness."""

import json

import numpy as np
import pytest
import torch
from openai_fixtures import SENTENCE, save_teacher
from teacher_fixtures import VOCAB, save_model, teacher_server
from vold_client import Completion, TeacherClient

CONVERSATION = [{"role": "user", "content": "Say it"}]


@pytest.fixture(scope="module")
def bear(tmp_path_factory):
    """A teacher that says SENTENCE, and its folder."""
    torch.set_num_threads(1)
    folder = save_teacher(tmp_path_factory.mktemp("clients") / "bear")
    with teacher_server(folder) as server:
        yield server, folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    with teacher_server(save_model(tmp_path_factory.mktemp("clients") / "tiny")) as server:
        yield server


@pytest.fixture
def client(bear):
    openai = pytest.importorskip("openai")
    server, _ = bear
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_generates(client):
    assert [model.id for model in client.models.list()] == ["bear"]
    answer = client.completions.create(model="bear", prompt="Say: ", max_tokens=100, temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (SENTENCE, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    answer = client.chat.completions.create(
        model="bear", messages=CONVERSATION, temperature=0, logprobs=True, top_logprobs=1, stop=["END"]
    )
    (choice,) = answer.choices
    assert choice.message.content == SENTENCE[: SENTENCE.index("END")]
    assert choice.message.role == "assistant"
    assert [entry.token for entry in choice.logprobs.content][:3] == ["E", "i", "n"]
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in choice.logprobs.content)


def test_openai_knows_the_models(client):
    (listed,) = client.models.list()
    assert client.models.retrieve("bear") == listed
    assert (listed.id, listed.max_model_len) == ("bear", 256)


def test_openai_streams(client):
    chunks = list(
        client.completions.create(
            model="bear",
            prompt=["Say: ", "Say: Ein"],
            max_tokens=100,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [SENTENCE, SENTENCE.removeprefix("Ein")]
    assert chunks[-1].usage.completion_tokens == 2 * len(SENTENCE.encode()) + 2 - len("Ein")
    with client.chat.completions.create(model="bear", messages=CONVERSATION, temperature=0, stream=True) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == SENTENCE


def test_openai_batches(client):
    answer = client.completions.create(
        model="bear", prompt=["Say: ", "Say: Ein", "Sa"], max_tokens=2, n=2, temperature=0, logprobs=1, echo=True
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == ["Say: Ei"] * 2 + ["Say: Ein n"] * 2 + ["Say:"] * 2
    for choice in answer.choices:
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens) == len(choice.text)


def test_openai_raises_its_own_errors(client):
    import openai

    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="gpt-9", prompt="a")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-9")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="bear", input="a")
    assert (raised.value.code, raised.value.type) == ("not_found", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="frequency_penalty is 1") as raised:
        client.chat.completions.create(model="bear", messages=CONVERSATION, frequency_penalty=1)
    assert raised.value.param == "frequency_penalty"
    with pytest.raises(openai.BadRequestError, match="at most 256"):
        client.completions.create(model="bear", prompt="a" * 300, stream=True)


@pytest.fixture
def trl(tiny, monkeypatch):
    """TRL's client of a vLLM server. It wants vLLM's package in place, which no call below needs."""
    module = pytest.importorskip("trl.generation.vllm_client")
    monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
    return module.VLLMClient(base_url=tiny.http)


def test_trl_scores_as_our_own_client(tiny, trl):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(6, VOCAB, length).tolist() for length in (5, 9, 2, 17)]
    completions = [rng.integers(6, VOCAB, length).tolist() for length in (7, 1, 20, 4)]
    k = 6
    for chunk_size in (0, 2):
        theirs = trl.get_sequence_logprobs(
            [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
            [len(prompt) for prompt in prompts],
            top_logprobs=k,
            chunk_size=chunk_size,
        )
        with TeacherClient(tiny.grpc and f"grpc://{tiny.grpc}") as client:
            ours = client.score(prompts, [Completion(i, ids) for i, ids in enumerate(completions)], top_k=k, ranks=True)
        outside = 0
        for index, score in enumerate(ours.scores):
            ids = np.array(completions[index])
            assert np.array(theirs["actual_token_ids"][index])[:, 0].tolist() == ids.tolist()
            np.testing.assert_allclose(np.array(theirs["actual_logprobs"][index])[:, 0], score.logprobs, atol=1e-5)
            np.testing.assert_array_equal(theirs["logprob_token_ids"][index], score.top_ids)
            np.testing.assert_allclose(theirs["logprobs"][index], score.top_logprobs, atol=1e-5)
            outside += (score.ranks > k).sum()
        assert outside > 10  # where the token itself is none of the most likely


def test_trl_generates(tiny, trl):
    prompts = [[7, 8, 9], [20, 21]]
    found = trl.generate(prompts, n=2, max_tokens=6, logprobs=2, top_k=50, generation_kwargs={"seed": 3})
    assert found["prompt_ids"] == prompts
    with TeacherClient(tiny.http) as client:
        ours = client.score(
            prompts, [Completion(index // 2, ids) for index, ids in enumerate(found["completion_ids"])], top_k=2
        )
    for index, score in enumerate(ours.scores):
        for place, own in enumerate(found["completion_ids"][index]):
            expected = {own: score.logprobs[place]}
            expected |= dict(zip(score.top_ids[place].tolist(), score.top_logprobs[place].tolist(), strict=True))
            shown = zip(found["logprob_token_ids"][index][place], found["logprobs"][index][place], strict=True)
            assert dict(shown) == pytest.approx(expected, abs=1e-5)
    chat = trl.chat([[{"role": "user", "content": "1+1"}]], n=2, max_tokens=5)
    assert chat["prompt_ids"] == [[4, 23, 17, 23, 1, 5]]
    assert [len(ids) for ids in chat["completion_ids"]] == [len(rows) for rows in chat["logprobs"]]


TALK = """
task: sentence
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Say: "
doc_to_target: "Ein naïver Bär 🐻 frißt 蜂蜜"
generation_kwargs: {{until: ["."], max_gen_toks: 80}}
metric_list: [{{metric: exact_match}}]
"""
DOCUMENTS = [
    {"question": "Say: Ein naïver Bär", "choices": [" 🐻 frißt", " frißt", " liest"], "answer": 0},
    {"question": "Say: Ein", "choices": [" Bär", " naïver Bär", " Mann"], "answer": 1},
    {"question": "Say: Ein naïver Bär 🐻 frißt", "choices": [" Honig", " 蜂蜜", " 🍯"], "answer": 1},
]
TASK = """
task: bears
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.mark.parametrize("backend", ["auto", "huggingface"])
def test_lm_eval_runs_its_tasks_with_our_numbers(bear, backend, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager
    from vold_teacher.tokenizer import Tokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    server, folder = bear
    data = tmp_path / "bears.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (tmp_path / "bears.yaml").write_text(TASK.format(data=data))
    (tmp_path / "sentence.yaml").write_text(TALK.format(data=data))
    tokenizer = {} if backend == "auto" else {"tokenizer": str(folder), "tokenizer_backend": backend}
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "bear",
            "base_url": f"{server.http}/v1/completions",
            "batch_size": 4,
            "max_length": 256,
            **tokenizer,
        },
        tasks=["bears", "sentence"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results["results"]["bears"]["acc,none"] == 1.0
    assert results["results"]["sentence"]["exact_match,none"] == 1.0
    encode = Tokenizer(folder).encode
    prompts = [encode(document["question"], special=False) for document in DOCUMENTS]
    completions = [
        Completion(index, encode(choice, special=False))
        for index, document in enumerate(DOCUMENTS)
        for choice in document["choices"]
    ]
    with TeacherClient(server.http) as client:
        scores = client.score(prompts, completions, ranks=True).scores
    samples = {sample["doc_id"]: sample["filtered_resps"] for sample in results["samples"]["bears"]}
    theirs = [tuple(response) for index in range(len(DOCUMENTS)) for response in samples[index]]
    ours = [(float(score.logprobs.sum()), bool((score.ranks == 1).all())) for score in scores]
    assert (
        [greedy for _, greedy in theirs]
        == [greedy for _, greedy in ours]
        == [True, False, False]
        + [
            False,
            True,
            False,
        ]
        * 2
    )
    np.testing.assert_allclose([float(value) for value, _ in theirs], [value for value, _ in ours], atol=1e-4)
