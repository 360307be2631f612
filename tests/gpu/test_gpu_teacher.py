"""The teacher's torch backend on the device, against float32 on the CPU, and bfloat16 against float32 at real width."""

import asyncio
import gc
import importlib.util
import logging
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from teacher_fixtures import VOCAB, make_model, save_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from vold_packing import varlen
from vold_packing.packed import Segment
from vold_service.errors import ServiceError
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence

FAMILIES = ["qwen3", "gemma2"]
SDPA = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
GROUPS = [(40, [1, 12, 7]), (3, [9]), (17, [30, 2])]
"""Tokens of a prompt, and of its completions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return lambda family: root / family if (root / family).exists() else save_model(root / family, family)


def ragged(vocabulary=VOCAB, groups=GROUPS, **options):
    rng = np.random.default_rng(0)
    options = ScoreOptions(**{"temperature": 0.8, "top_k": 4, "entropy": True, "ranks": True} | options)
    sequences = []
    for prompt_length, lengths in groups:
        prompt = rng.integers(0, vocabulary, prompt_length).astype(np.int32)
        for length in lengths:
            counts = rng.integers(0, 4, length).astype(np.int32)
            ids = rng.integers(0, vocabulary, length).astype(np.int32)
            candidates = rng.integers(0, vocabulary, counts.sum()).astype(np.int32)
            sequences.append(Sequence(prompt, ids, options, candidates, counts))
    return [sequences[index] for index in rng.permutation(len(sequences))]


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        for name in ("logprobs", "candidate_logprobs", "entropy", "top_logprobs", "hidden_states"):
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance, err_msg=name
            )


def attentions(device, dtype):
    names = ["auto", "sdpa", "eager"]
    if device.type == "cpu" or dtype != "float32":
        names.append("varlen")
    if device.type == "cuda" and dtype != "float32" and importlib.util.find_spec("flash_attn"):
        names.append("flash_attention_2")
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_in_float32_are_those_of_the_cpu(device, folder, family):
    sequences = ragged(hidden_states=True)
    expected = TorchBackend(folder(family), device="cpu", attention="eager", limits=DecoderLimits()).score(sequences)
    for attention in ["auto"] if family == "gemma2" else attentions(device, "float32"):
        backend = TorchBackend(
            folder(family), dtype="float32", device=device.type, attention=attention, limits=DecoderLimits()
        )
        found = backend.score(sequences).scores
        assert_same(found, expected.scores, 2e-4)
        for one, other in zip(found, expected.scores, strict=True):  # ids whose values are equal may change places
            np.testing.assert_allclose(one.top_logprobs.max(-1), other.top_logprobs.max(-1), rtol=0, atol=2e-4)
            assert (np.abs(one.ranks - other.ranks) <= 2).all()


@pytest.mark.gpu
def test_scores_in_bfloat16_are_about_those_of_the_cpu_with_each_attention(cuda, folder):
    sequences = ragged(hidden_states=True)
    expected = TorchBackend(folder("qwen3"), device="cpu", limits=DecoderLimits()).score(sequences).scores
    reasons = []
    for attention in attentions(cuda, "bfloat16"):
        try:
            backend = TorchBackend(
                folder("qwen3"), dtype="bfloat16", device="cuda", attention=attention, limits=DecoderLimits()
            )
        except OSError as error:
            reasons.append(str(error))
            continue
        for one, other in zip(backend.score(sequences).scores, expected, strict=True):
            assert np.abs(one.logprobs - other.logprobs).mean() < 0.1, attention
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "flash_attn"])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=["mha", "gqa"])
def test_a_kernel_for_different_lengths_equals_the_reference(cuda, name, heads):
    try:
        kernel = varlen.KERNELS[name](cuda, torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"{name}: {error}")
    segments = [Segment(0, 200), Segment(200, 263, 0, 200), Segment(263, 264, 0, 200), Segment(264, 700)]
    generator = torch.Generator(cuda).manual_seed(0)
    shapes = [(1, count, 700, 128) for count in (heads[0], heads[1], heads[1])]
    tensors = [torch.randn(shape, device=cuda, generator=generator).bfloat16() for shape in shapes]
    offsets = varlen.Offsets.of(segments, cuda)
    for scale in (None, 0.05):
        found = varlen.attend(kernel, *tensors, offsets, scale)
        exact = varlen.attend(varlen.reference, *(tensor.float() for tensor in tensors), offsets, scale)
        torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", SDPA, ids=lambda kernel: kernel.name)
def test_each_kernel_of_sdpa_gives_the_scores_of_the_cpu(cuda, folder, kernel):
    """Plain sequences of one length, which need no mask, so that each kernel may serve."""
    sequences = ragged(groups=[(9, [8])] * 4)
    expected = TorchBackend(folder("qwen3"), device="cpu", limits=DecoderLimits()).score(sequences).scores
    backend = TorchBackend(folder("qwen3"), dtype="bfloat16", device="cuda", attention="sdpa", limits=DecoderLimits())
    try:
        with sdpa_kernel(kernel):
            found = backend.score(sequences).scores
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip(f"sdpa has no {kernel.name} here")
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one.logprobs - other.logprobs).mean() < 0.1


@pytest.mark.slow_on_cpu
def test_bfloat16_is_near_float32_at_real_width(device, tmp_path):
    """Two layers of Qwen3-8B with its vocabulary on a GPU; the tiny shape on a CPU."""
    from gpu_parts import shapes

    size = "real" if device.type == "cuda" else "tiny"
    config = shapes.teacher_config(size)
    config.num_hidden_layers = 2
    config.layer_types = config.layer_types[:2]
    config.save_pretrained(tmp_path)
    sequences = ragged(config.vocab_size, [(64, [200, 130]), (100, [300])] if size == "real" else GROUPS)
    logprobs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = shapes.random_model(shapes.AutoModelForCausalLM, config, device, torch.float32).to(dtype)
        backend = TorchBackend(tmp_path, device=device.type, limits=DecoderLimits(), model=model)
        logprobs.append(np.concatenate([score.logprobs for score in backend.score(sequences).scores]))
        del model, backend
        gc.collect()
    error = np.abs(logprobs[1] - logprobs[0])
    assert error.mean() < 0.03
    assert error.max() < 0.25
    assert np.std(logprobs[0]) > 0.01, "the comparison needs logits that differ"


def generated(backend, requests, cancel=None):
    """(ids, logprobs) by (request, prompt, completion). cancel: the request to cancel after some tokens."""
    decoder = backend.decoder()
    for number, (prompts, options) in enumerate(requests):
        decoder.add(number, prompts, options, 0)
    found, steps = {}, 0
    while decoder.busy:
        for number, chunk in decoder.advance(0.0):
            ids, logprobs = found.setdefault((number, chunk.prompt, chunk.index), ([], []))
            ids.extend(chunk.ids.tolist())
            logprobs.extend(chunk.logprobs.tolist())
        steps += 1
        if steps == 4 and cancel is not None:
            decoder.cancel(cancel)
    return found


def requests_to_generate(temperature, **options):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(6, VOCAB, length).astype(np.int32) for length in (3, 20, 9)]
    asked = SamplingOptions(12, n=2, temperature=temperature, **options)
    return [([GeneratePrompt(ids, 0, 12)], asked) for ids in prompts]


@pytest.mark.slow_on_cpu
def test_generation_is_that_of_the_cpu_and_its_log_probabilities_are_the_scores(device, folder):
    def backend(name):
        return TorchBackend(folder("qwen3"), dtype="float32", device=name, limits=DecoderLimits(max_rows=4))

    own = backend(device.type)
    greedy = requests_to_generate(0.0)
    found, expected = generated(own, greedy), generated(backend("cpu"), greedy)
    assert {key: ids for key, (ids, _) in found.items()} == {key: ids for key, (ids, _) in expected.items()}

    sampled = requests_to_generate(0.9, seed=7)
    found = generated(own, sampled)
    assert found == generated(own, sampled), "a seed draws the same"
    assert {len(ids) for ids, _ in found.values()} != {0}
    for (number, _, _), (ids, logprobs) in found.items():
        prompt = sampled[number][0][0].ids
        scored = own.score([Sequence(prompt, np.array(ids, np.int32), ScoreOptions())]).scores[0]
        np.testing.assert_allclose(logprobs, scored.logprobs, rtol=1e-3, atol=1e-3)


def test_what_is_cancelled_in_the_middle_changes_nothing_for_the_others(device, folder):
    backend = TorchBackend(folder("qwen3"), dtype="float32", device=device.type, limits=DecoderLimits())
    requests = requests_to_generate(0.9, seed=3, stream_tokens=True)
    whole, cut = generated(backend, requests), generated(backend, requests, cancel=1)
    for key, (ids, _) in whole.items():
        if key[0] == 1:
            assert len(cut[key][0]) < 12
        else:
            assert cut[key][0] == ids


class FullDevice(TorchBackend):
    """On a CPU, which has no memory of its own to fill: more than a few tokens are too many. Says which tensors of a
    failed batch are still held when the next one begins.
    """

    most = 60

    def score(self, sequences):
        held = getattr(self, "held", None)
        self.still_held = getattr(self, "still_held", False) or (held is not None and held() is not None)
        if self.device.type == "cpu" and sum(sequence.length for sequence in sequences) > self.most:
            states = torch.zeros(8)
            self.held = weakref.ref(states)
            raise torch.OutOfMemoryError(f"no room for {states.nbytes} bytes")
        return super().score(sequences)


@pytest.fixture
def little_memory(device):
    """Leaves torch about 300 MiB more than it holds."""
    if device.type == "cpu":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + (300 << 20)) / total, device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()


def test_a_batch_that_fills_the_memory_costs_the_others_nothing(device, folder, tmp_path, little_memory):
    pytest.importorskip("pydantic", reason="the engine needs pydantic, which is not installed")
    from engine_runs import run_engine
    from vold_service.call import Call

    limits = DecoderLimits()
    if device.type == "cpu":
        backend = FullDevice(folder("qwen3"), device="cpu", limits=limits)
        long, vocabulary = 70, VOCAB
    else:
        from gpu_parts import shapes

        config = replace_layers(shapes.teacher_config("tiny"), max_position_embeddings=1 << 17, intermediate_size=4096)
        config.save_pretrained(tmp_path)
        model = shapes.random_model(shapes.AutoModelForCausalLM, config, device, torch.bfloat16)
        backend = FullDevice(tmp_path, device="cuda", limits=limits, model=model)
        long, vocabulary = 1 << 16, config.vocab_size  # its feed-forward layer alone takes 512 MiB
    rng = np.random.default_rng(0)
    few, many = (rng.integers(0, vocabulary, count).astype(np.int32) for count in (9, long))
    prompt = np.array([5, 6], np.int32)
    short = Sequence(prompt, few, ScoreOptions())
    mixed = {0: short, 1: replace(short, completion=many), 2: replace(short, completion=few[:4])}

    async def work(engine):
        first = await engine.score(mixed, call=Call())
        return first, await asyncio.wait_for(engine.score({0: short}, call=Call()), 60)

    logging.getLogger("vold.teacher.engine").disabled = True  # pytest keeps what is logged, with its error
    try:
        mixed_scores, after = run_engine(backend, work, batch_tokens=1 << 20)
    finally:
        logging.getLogger("vold.teacher.engine").disabled = False
    assert isinstance(mixed_scores.scores[1], ServiceError)
    assert "OutOfMemoryError" in str(mixed_scores.scores[1])
    assert not backend.still_held
    assert [len(mixed_scores.scores[index].logprobs) for index in (0, 2)] == [9, 4]
    np.testing.assert_allclose(after.scores[0].logprobs, mixed_scores.scores[0].logprobs, rtol=0, atol=1e-2)


def replace_layers(config, **settings):
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.slow_on_cpu
def test_the_plain_model_is_what_all_of_this_is_compared_with(device, folder):
    """Log-probabilities of one sequence by transformers alone, on the device."""
    sequence = ragged()[0]
    model = make_model("qwen3").to(device)
    whole = torch.from_numpy(np.concatenate([sequence.prompt, sequence.completion])).long().to(device)
    with torch.no_grad():
        logits = model(whole[None]).logits[0, len(sequence.prompt) - 1 : -1] / sequence.options.temperature
    expected = logits.log_softmax(-1).gather(-1, whole[len(sequence.prompt) :, None])[:, 0].cpu()
    backend = TorchBackend(folder("qwen3"), dtype="float32", device=device.type, limits=DecoderLimits())
    np.testing.assert_allclose(backend.score([sequence]).scores[0].logprobs, expected, rtol=0, atol=1e-4)
