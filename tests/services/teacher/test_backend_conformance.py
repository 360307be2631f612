"""What every backend must do, whichever computes: the same tests for all of them, with transformers as the reference.

torch, and the gateway in front of stand-ins that speak vLLM's and SGLang's protocols (upstream_servers.py), run
everywhere. The embedded vLLM, with either of its model runners, and the gateway in front of stock vLLM servers, one of
them with candidates, run where vLLM is installed, which is in a virtual environment of its own: `make test-vllm`. So is
a stock SGLang, which VOLD_SGLANG_PYTHON runs: `make test-sglang`.
"""

import importlib.util
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import HELPERS
from teacher_fixtures import VOCAB, make_model, save_model
from upstream_fixtures import free_port, gateway, process, stand_in
from vold_proto.arrays import pack_ids
from vold_proto.v1 import status_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import ServiceError
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, ScoreOptions, Sequence
from vold_teacher.validation import Limits, read_sampling_options, read_score_options, read_sequences

TOLERANCE = 1e-4  # float32 everywhere; vLLM's own kernels differ by up to 4e-5
HEAD = 32
VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make test-vllm"),
    pytest.mark.timeout(1800),  # an engine comes up in a minute, on a busy machine in ten
]
SGLANG_PYTHON = os.environ.get("VOLD_SGLANG_PYTHON")
SGLANG = [
    pytest.mark.sglang,
    pytest.mark.skipif(SGLANG_PYTHON is None, reason="no SGLang here: make test-sglang"),
    pytest.mark.timeout(1800),
]
BACKENDS = [
    "torch",
    "upstream-vllm",
    "upstream-vllm-rows",
    "upstream-sglang",
    pytest.param("vllm", marks=VLLM),
    pytest.param("upstream-stock-vllm", marks=VLLM),
    pytest.param("upstream-stock-vllm-rows", marks=VLLM),
    pytest.param("upstream-stock-sglang", marks=SGLANG),
]
# What makes vLLM take its second model runner, which scores candidates, on a CPU too.
SECOND_RUNNER = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": str(HELPERS / "triton_interpreter"),
}
CANDIDATES = {
    "torch",
    "upstream-vllm-rows",
    "upstream-sglang",
    "upstream-stock-vllm-rows",
    "upstream-stock-sglang",
}
if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    CANDIDATES.add("vllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"), head_dim=HEAD)


@pytest.fixture(scope="module")
def reference():
    return make_model("qwen3", head_dim=HEAD)


def stock_vllm(folder: Path, port: int, *, rows: bool):
    """rows: with candidates."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--enforce-eager", "--gpu-memory-utilization", "0.25", "--max-num-batched-tokens", "512"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if rows:
        command += ["--enable-scale-out", "--max-logprobs", "64"]
        settings |= SECOND_RUNNER
    return process(command, port, seconds=1200, **settings)


def stock_sglang(folder: Path, port: int):
    command = [str(SGLANG_PYTHON), "-m", "sglang.launch_server", "--model-path", str(folder)]
    command += ["--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
    command += ["--grammar-backend", "none", "--disable-overlap-schedule", "--sleep-on-idle"]
    command += ["--max-total-tokens", "8192", "--chunked-prefill-size", "64"]
    shim = str(HELPERS / "sglang_cpu")
    return process(command, port, seconds=1200, SGLANG_USE_CPU_ENGINE="1", HF_HUB_OFFLINE="1", PYTHONPATH=shim)


@pytest.fixture(scope="module")
def stand_in_port(folder):
    port = free_port()
    with stand_in(folder, port):
        yield port


@pytest.fixture(scope="module", params=BACKENDS)
def make_backend(request, folder):
    """Opens the backend; called again, opens it once more, as after a restart."""
    if request.param == "torch":
        yield lambda: TorchBackend(folder, limits=DecoderLimits())
    elif request.param == "vllm":
        from vold_teacher.backends.vllm import VllmBackend, VllmOptions

        yield lambda: VllmBackend(folder, VllmOptions(max_logprobs=64))
    elif request.param.startswith("upstream-stock-vllm"):
        port = free_port()
        with stock_vllm(folder, port, rows=request.param.endswith("-rows")):
            yield lambda: gateway(folder, "vllm", port)
    elif request.param == "upstream-stock-sglang":
        port = free_port()
        with stock_sglang(folder, port):
            yield lambda: gateway(folder, "sglang", port)
    else:
        port = request.getfixturevalue("stand_in_port")
        speaks = request.param.removeprefix("upstream-")
        yield lambda: gateway(folder, speaks.partition("-")[0], f"{port}/{speaks}")


@pytest.fixture(scope="module")
def backend(make_backend):
    opened = make_backend()
    yield opened
    opened.close()


def rng_ids(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def sequence(seed: int, prompt: int, completion: int, **options) -> Sequence:
    ids = rng_ids(seed, prompt + completion)
    return Sequence(ids[:prompt], ids[prompt:], ScoreOptions(**options))


def expected_rows(reference, wanted: Sequence, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities [T, V] of the positions of the completion."""
    ids = np.concatenate([wanted.prompt, wanted.completion]).astype(np.int64)
    with torch.inference_mode():
        logits = reference(torch.from_numpy(ids)[None]).logits[0] / temperature
    return logits.log_softmax(-1)[len(wanted.prompt) - 1 : -1]


def assert_sampled(reference, wanted: Sequence, score) -> None:
    assert not isinstance(score, ServiceError), score
    rows = expected_rows(reference, wanted, wanted.options.temperature)
    ids = torch.from_numpy(wanted.completion.astype(np.int64))
    np.testing.assert_allclose(score.logprobs, rows.gather(-1, ids[:, None])[:, 0].numpy(), atol=TOLERANCE)
    assert score.logprobs.dtype == np.float32


def limits(backend) -> Limits:
    info = backend.info
    return Limits(info.vocab_size, info.max_sequence, 1024, 1024, 1024, info.capabilities, info.backend)


def test_sampled_logprobs_long_and_short_together(backend, reference):
    longest = backend.info.max_sequence - 100
    batch = [sequence(0, 100, longest), sequence(1, 1, 1), sequence(2, 3, 40), sequence(3, 60, 1), sequence(4, 1, 30)]
    scored = backend.score(batch)
    assert len(scored.scores) == len(batch)
    for wanted, score in zip(batch, scored.scores, strict=True):
        assert_sampled(reference, wanted, score)
        assert score.top_ids is None
        assert score.candidate_logprobs is None
    assert scored.real_tokens >= sum(wanted.length for wanted in batch)


@pytest.mark.parametrize("top_k", [0, 2])
def test_a_prompt_scored_again_has_the_same_numbers(backend, reference, top_k):
    """Whatever the engine keeps of a prefix must not leak into the numbers."""
    shared = rng_ids(5, 200)
    batch = [Sequence(shared, rng_ids(6 + index, 20), ScoreOptions(top_k=top_k)) for index in range(4)]
    for _ in range(3):
        for wanted, score in zip(batch, backend.score(batch).scores, strict=True):
            assert_sampled(reference, wanted, score)


@pytest.mark.parametrize("top_k", [1, 5, 20])
def test_top_k(backend, reference, top_k):
    assert top_k <= limits(backend).allowed_top_k
    batch = [sequence(10, 4, 30, top_k=top_k), sequence(11, 50, 3)]
    scores = backend.score(batch).scores
    assert_sampled(reference, batch[0], scores[0])
    assert_sampled(reference, batch[1], scores[1])
    values, ids = expected_rows(reference, batch[0]).topk(top_k)
    np.testing.assert_array_equal(scores[0].top_ids, ids.numpy())
    np.testing.assert_allclose(scores[0].top_logprobs, values.numpy(), atol=TOLERANCE)
    assert scores[1].top_ids is None


def test_the_sampled_token_inside_the_top_k(backend, reference):
    wanted = sequence(12, 4, 20)
    completion = wanted.completion.copy()
    for position in range(len(completion)):  # each the most likely one, or the third
        rows = expected_rows(reference, Sequence(wanted.prompt, completion, wanted.options))
        completion[position] = rows[position].topk(3).indices[0 if position % 2 else 2]
    inside = Sequence(wanted.prompt, completion, ScoreOptions(top_k=3))
    score = backend.score([inside]).scores[0]
    assert_sampled(reference, inside, score)
    places = np.where(np.arange(len(completion)) % 2, 0, 2)
    np.testing.assert_array_equal(score.top_ids[np.arange(len(completion)), places], completion)


def test_more_than_the_largest_top_k_is_refused(backend):
    most = limits(backend).allowed_top_k
    with pytest.raises(ServiceError, match=f"at most {most}"):
        read_score_options(pb.ScoreOptions(top_k=most + 1), limits(backend))


def test_temperature_is_right_or_refused(backend, reference):
    if backend.info.capabilities.temperature:
        wanted = sequence(20, 5, 12, temperature=1.7)
        assert_sampled(reference, wanted, backend.score([wanted]).scores[0])
    else:
        with pytest.raises(ServiceError, match=rf"temperature is 1\.7: the {backend.info.backend} backend"):
            read_score_options(pb.ScoreOptions(temperature=1.7), limits(backend))


def test_entropy_is_right_or_refused(backend, reference):
    if backend.info.capabilities.entropy:
        wanted = sequence(21, 5, 12, entropy=True)
        rows = expected_rows(reference, wanted)
        expected = -(rows.exp() * rows).sum(-1)
        np.testing.assert_allclose(backend.score([wanted]).scores[0].entropy, expected.numpy(), atol=TOLERANCE)
    else:
        with pytest.raises(ServiceError, match=f"entropy is true: the {backend.info.backend} backend gives none"):
            read_score_options(pb.ScoreOptions(entropy=True), limits(backend))


def test_hidden_states_are_right_or_refused(backend, reference):
    if backend.info.capabilities.hidden_states:
        wanted = sequence(22, 5, 12, hidden_states=True)
        ids = torch.from_numpy(np.concatenate([wanted.prompt, wanted.completion]).astype(np.int64))
        with torch.inference_mode():
            expected = reference.model(ids[None]).last_hidden_state[0, 4:-1]
        np.testing.assert_allclose(backend.score([wanted]).scores[0].hidden_states, expected.numpy(), atol=TOLERANCE)
    else:
        with pytest.raises(ServiceError, match="hidden_states is true"):
            read_score_options(pb.ScoreOptions(hidden_states=True), limits(backend))


def test_who_scores_candidates(backend, request):
    assert backend.info.capabilities.candidates == (request.node.callspec.params["make_backend"] in CANDIDATES)


@pytest.mark.parametrize("top_k", [0, 3])
def test_candidates_are_right_or_refused(backend, reference, top_k):
    counts = np.array([3, 0, 1, 20, 2], np.int32)
    ids = rng_ids(31, int(counts.sum()))
    bare = sequence(30, 7, 5, top_k=top_k)
    if backend.info.capabilities.candidates:
        wanted = Sequence(bare.prompt, bare.completion, bare.options, ids, counts)
        scores = backend.score([wanted, bare]).scores
        rows = expected_rows(reference, wanted)
        expected = rows[np.repeat(np.arange(5), counts), ids.astype(np.int64)]
        np.testing.assert_allclose(scores[0].candidate_logprobs, expected.numpy(), atol=TOLERANCE)
        for score in scores:
            assert_sampled(reference, bare, score)
            np.testing.assert_array_equal(score.top_ids, rows.topk(3).indices.numpy() if top_k else None)
        assert scores[1].candidate_logprobs is None
    else:
        completion = pb.Completion(ids=pack_ids(bare.completion))
        completion.candidates.ids, completion.candidates.counts = pack_ids(ids), pack_ids(counts)
        request = pb.ScoreRequest(prompts=[pb.Prompt(ids=pack_ids(bare.prompt))], completions=[completion])
        _, faults = read_sequences(request, bare.options, limits(backend))
        assert "scores no candidates; ask for a top_k" in faults[0].message


def test_more_than_the_most_candidates_are_refused(backend):
    able = limits(backend)
    if not able.allowed_candidates:
        pytest.skip("it has none")
    completion = pb.Completion(ids=pack_ids(rng_ids(32, 1)))
    completion.candidates.ids = pack_ids(rng_ids(33, able.allowed_candidates + 1))
    completion.candidates.per_position = able.allowed_candidates + 1
    request = pb.ScoreRequest(prompts=[pb.Prompt(ids=pack_ids(rng_ids(34, 3)))], completions=[completion])
    _, faults = read_sequences(request, ScoreOptions(), able)
    assert f"between 0 and {able.allowed_candidates} are given" in faults[0].message


def test_one_bad_item_costs_no_other(backend, reference):
    """An id that the model has no row for, past every check before the backend."""
    bad = Sequence(rng_ids(40, 5), np.array([3, VOCAB + 7], np.int32), ScoreOptions())
    batch = [sequence(41, 6, 9), bad, sequence(42, 2, 5)]
    if backend.info.backend == "torch":  # computes a batch as one, so that the engine asks again one by one
        with pytest.raises((IndexError, RuntimeError)):
            backend.score(batch)
        scores = [backend.score([wanted]).scores[0] if wanted is not bad else None for wanted in batch]
    else:
        scores = backend.score(batch).scores
        assert isinstance(scores[1], ServiceError)
        assert scores[1].code == status_pb2.INVALID_ARGUMENT
    assert_sampled(reference, batch[0], scores[0])
    assert_sampled(reference, batch[2], scores[2])


def test_calls_from_several_threads(backend, reference):
    batches = [[sequence(50 + 3 * call + item, 5 + item, 8) for item in range(3)] for call in range(8)]
    results: list = [None] * len(batches)

    def work(first: int) -> None:
        for call in range(first, len(batches), backend.info.max_in_flight):
            results[call] = backend.score(batches[call]).scores

    threads = [threading.Thread(target=work, args=(first,)) for first in range(backend.info.max_in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch, scores in zip(batches, results, strict=True):
        for wanted, score in zip(batch, scores, strict=True):
            assert_sampled(reference, wanted, score)


def run(
    backend, options: SamplingOptions, *prompts: np.ndarray, seeds: Mapping[int, int] = {}
) -> dict[tuple[int, int], list]:
    """Everything that a decoder gives for one request, by (prompt, completion). seeds: prompts' own, by place."""
    decoder = backend.decoder()
    sent = [GeneratePrompt(ids, index, options.max_tokens, seeds.get(index)) for index, ids in enumerate(prompts)]
    decoder.add(7, sent, options, 0)
    chunks: dict[tuple[int, int], list] = {}
    while decoder.busy:
        for request, chunk in decoder.advance(0.05):
            assert request == 7
            assert not isinstance(chunk, ServiceError), chunk
            chunks.setdefault((chunk.prompt, chunk.index), []).append(chunk)
    return chunks


def joined(chunks: list) -> tuple[np.ndarray, np.ndarray]:
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return np.concatenate([chunk.ids for chunk in chunks]), np.concatenate([chunk.logprobs for chunk in chunks])


def greedy(reference, prompt: np.ndarray, tokens: int) -> list[int]:
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()


def assert_scored_alike(reference, prompt: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> None:
    """A generation's log-probabilities are those of scoring it: at temperature 1, over the whole vocabulary."""
    rows = expected_rows(reference, Sequence(prompt, ids, ScoreOptions()))
    expected = rows.gather(-1, torch.from_numpy(ids.astype(np.int64))[:, None])[:, 0]
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=TOLERANCE)


def test_greedy_generation_is_that_of_transformers(backend, reference):
    prompts = [rng_ids(60, 5), rng_ids(61, 40)]
    chunks = run(backend, SamplingOptions(max_tokens=12, temperature=0), *prompts)
    for index, prompt in enumerate(prompts):
        ids, logprobs = joined(chunks[index, 0])
        assert ids.tolist() == greedy(reference, prompt, 12)
        assert chunks[index, 0][-1].finish_reason == "length"
        assert_scored_alike(reference, prompt, ids, logprobs)


def test_min_p_of_1_leaves_the_most_likely_token_alone(backend, reference):
    prompt = rng_ids(60, 5)
    (chunks,) = run(backend, SamplingOptions(max_tokens=6, temperature=1.9, min_p=1.0, seed=5), prompt).values()
    assert joined(chunks)[0].tolist() == greedy(reference, prompt, 6)


def test_a_completion_that_its_caller_ends_leaves_and_the_others_go_on(backend):
    decoder = backend.decoder()
    options = SamplingOptions(max_tokens=30, n=3, temperature=1.0, seed=6, stream_tokens=True)
    decoder.add(0, [GeneratePrompt(rng_ids(60, 5), 0, 30)], options, 0)
    chunks: list[GenerateChunk] = []
    while not any(chunk.index == 1 for chunk in chunks):
        chunks += [chunk for _, chunk in decoder.advance(0.1)]
    decoder.end(0, 0, 1)
    later: list[GenerateChunk] = []
    while decoder.busy:
        later += [chunk for _, chunk in decoder.advance(0.1)]
    assert not any(chunk.index == 1 for chunk in later)
    for index in (0, 2):
        assert sum(len(chunk.ids) for chunk in [*chunks, *later] if chunk.index == index) <= 30
        assert [chunk.finish_reason for chunk in [*chunks, *later] if chunk.index == index][-1] is not None


def test_a_stop_id_ends_a_completion_and_is_part_of_it(backend, reference):
    prompt = rng_ids(60, 5)
    whole = greedy(reference, prompt, 12)
    stop = whole[4]
    options = SamplingOptions(max_tokens=12, temperature=0, stop_ids=frozenset({stop, 119}))
    (chunks,) = run(backend, options, prompt).values()
    assert joined(chunks)[0].tolist() == whole[: whole.index(stop) + 1]
    assert chunks[-1].finish_reason == "stop"


def test_what_is_no_stop_id_does_not_stop(backend, reference):
    """The end-of-sequence id too ends a completion only where the request says so."""
    eos = backend.info.eos_ids
    assert eos == (1,)
    chunks = run(backend, SamplingOptions(max_tokens=40, temperature=2.0, n=8, seed=3), rng_ids(62, 4))
    assert {chunk[-1].finish_reason for chunk in chunks.values()} == {"length"}
    assert {len(joined(chunk)[0]) for chunk in chunks.values()} == {40}


@pytest.mark.slow
def test_the_models_own_end_id_is_one_like_others_where_it_is_not_asked_for(backend, reference):
    options = SamplingOptions(max_tokens=40, temperature=2.0, n=24, seed=4, stop_ids=frozenset({118}))
    whole = [
        (joined(chunks)[0].tolist(), chunks[-1].finish_reason)
        for chunks in run(backend, options, rng_ids(62, 4)).values()
    ]
    assert any(1 in ids for ids, _ in whole)
    for ids, reason in whole:
        assert (len(ids), reason) == ((ids.index(118) + 1, "stop") if 118 in ids else (40, "length"))


def test_a_seed_gives_the_same_completions_and_another_does_not(backend, reference):
    if not backend.info.capabilities.seed:
        pytest.skip("it samples without regard to a seed, and says so")
    prompts = [rng_ids(63, 5), rng_ids(64, 9)]
    options = SamplingOptions(max_tokens=10, temperature=1.3, n=2, seed=11, stream_tokens=False)
    first = {key: joined(chunks) for key, chunks in run(backend, options, *prompts).items()}
    again = {key: joined(chunks) for key, chunks in run(backend, options, *prompts).items()}
    other = {
        key: joined(chunks)
        for key, chunks in run(backend, SamplingOptions(10, n=2, temperature=1.3, seed=12), *prompts).items()
    }
    assert set(first) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len({tuple(ids) for ids, _ in first.values()}) == 4
    for key, (ids, logprobs) in first.items():
        np.testing.assert_array_equal(ids, again[key][0])
        assert_scored_alike(reference, prompts[key[0]], ids, logprobs)
    assert any(not np.array_equal(ids, other[key][0]) for key, (ids, _) in first.items())
    moved = run(backend, options, prompts[1], prompts[0], seeds={1: 11})
    for index in range(2):
        np.testing.assert_array_equal(joined(moved[1, index])[0], first[0, index][0])


def test_a_seed_is_refused_where_nothing_is_drawn_by_it(backend):
    options = pb.GenerateOptions(max_tokens=4, seed=7)
    if backend.info.capabilities.seed:
        assert read_sampling_options(options, limits(backend), ()).seed == 7
    else:
        refusal = f"options.seed is 7: the {backend.info.backend} backend samples without"
        with pytest.raises(ServiceError, match=refusal):
            read_sampling_options(options, limits(backend), ())
        assert (
            read_sampling_options(pb.GenerateOptions(max_tokens=4, seed=7, temperature=0), limits(backend), ()).seed
            == 7
        )
        assert read_sampling_options(pb.GenerateOptions(max_tokens=4), limits(backend), ())


def test_streaming_gives_the_same_in_parts(backend, reference):
    prompt = rng_ids(65, 6)
    options = {"max_tokens": 9, "temperature": 1.1 if backend.info.capabilities.seed else 0, "seed": 2}
    (whole,) = run(backend, SamplingOptions(**options), prompt).values()
    (parts,) = run(backend, SamplingOptions(**options, stream_tokens=True), prompt).values()
    np.testing.assert_array_equal(joined(parts)[0], joined(whole)[0])
    assert_scored_alike(reference, prompt, *joined(parts))
    assert len(parts) > 1 or backend.info.backend == "upstream-sglang"


def test_a_cancelled_request_ends_and_others_go_on(backend, reference):
    decoder = backend.decoder()
    prompt = rng_ids(66, 5)
    decoder.add(0, [GeneratePrompt(prompt, 0, 150)], SamplingOptions(150, n=2, temperature=1.0), 0)
    decoder.add(1, [GeneratePrompt(prompt, 0, 8)], SamplingOptions(8, temperature=0), 5)
    got = list(decoder.advance(0.01))
    decoder.cancel(0)
    while decoder.busy:
        got += decoder.advance(0.05)
    assert {request for request, chunk in got if chunk.finish_reason} == {1}
    ids = np.concatenate([chunk.ids for request, chunk in got if request == 1])
    assert ids.tolist() == greedy(reference, prompt, 8)


def test_what_it_says_of_itself_holds_after_a_restart(make_backend, backend, request):
    info = backend.info
    assert info.vocab_size == VOCAB
    assert len(info.weights_fingerprint) == 32
    assert info.max_sequence in (505, 511, 512)
    again = make_backend()
    try:
        assert again.info == info
    finally:
        again.close()
        again.close()
    before = threading.active_count()
    assert backend.score([sequence(70, 3, 3)]).scores  # closing one does not touch another
    assert threading.active_count() <= before


def test_close_leaves_nothing_behind(make_backend):
    threads, children = set(threading.enumerate()), set(multiprocessing.active_children())
    opened = make_backend()
    opened.close()
    left = [thread for thread in set(threading.enumerate()) - threads if thread.name in ("vllm", "upstream")]
    assert not left
    assert set(multiprocessing.active_children()) <= children


def test_another_attention_has_the_same_numbers_and_a_missing_one_is_named(folder, reference):
    eager = TorchBackend(folder, limits=DecoderLimits(), attention="eager")
    assert eager.model.config._attn_implementation == "eager"
    wanted = sequence(80, 9, 30)
    assert_sampled(reference, wanted, eager.score([wanted]).scores[0])
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(OSError, match=r"cannot load a causal language model from .*[Ff]lash"):
            TorchBackend(folder, limits=DecoderLimits(), attention="flash_attention_2")


@pytest.mark.slow
def test_a_compiled_model_has_the_same_numbers(folder, reference):
    compiled = TorchBackend(folder, limits=DecoderLimits(), compiled=True)
    for length in (30, 7):
        batch = [sequence(81, 9, length), sequence(82, 4, 3)]
        for wanted, score in zip(batch, compiled.score(batch).scores, strict=True):
            assert_sampled(reference, wanted, score)
    (chunks,) = run(compiled, SamplingOptions(max_tokens=6, temperature=0), rng_ids(83, 5)).values()
    assert joined(chunks)[0].tolist() == greedy(reference, rng_ids(83, 5), 6)
