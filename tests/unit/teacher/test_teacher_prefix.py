"""Prompts that completions share are computed once, and the scores are those of plain transformers forwards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from teacher_fixtures import VOCAB, make_model, save_model
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config
from vold_packing import packed
from vold_teacher.backends import torch as torch_backend
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.head import gpu_head_rows
from vold_teacher.backends.prefix import shared_prompt_states
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.batch import Layout
from vold_teacher.types import ScoreOptions, Sequence


@pytest.fixture(scope="module", params=["qwen3", "llama", "gemma2"])
def folder(request, tmp_path_factory):
    torch.set_num_threads(1)
    return request.param, save_model(tmp_path_factory.mktemp("prefix"), request.param)


@pytest.fixture(scope="module", params=["packed", "varlen", "shared"])
def model_and_backend(request, folder):
    name, path = folder
    own = "eager" if name == "gemma2" else "sdpa"
    attention = {"packed": "auto", "varlen": "varlen", "shared": own}[request.param]
    if name == "gemma2" and attention == "varlen":
        pytest.skip("Gemma 2 caps its attention scores, which no kernel of varlen can")
    backend = TorchBackend(path, device="cpu", attention=attention, limits=DecoderLimits())
    # Gemma 2 caps its attention scores, which sdpa cannot.
    assert backend.info.layout is (Layout.SHARED if name == "gemma2" or request.param == "shared" else Layout.PACKED)
    return make_model(name), backend


def test_varlen_that_cannot_be_had_says_what_to_use(folder):
    name, path = folder
    if name == "gemma2":
        with pytest.raises(OSError, match=r"--attention varlen .*reference: not for this architecture.*: use auto"):
            TorchBackend(path, device="cpu", attention="varlen", limits=DecoderLimits())
    with pytest.raises(OSError, match="--attention varlen and --compile cannot be had together"):
        TorchBackend(path, device="cpu", attention="varlen", compiled=True, limits=DecoderLimits())


def test_a_gpu_gets_chunks_of_logits_by_its_memory():
    vocabulary = 151_936
    for gib, rows in ((24, 128), (80, 512), (141, 896), (1000, 1664), (1, 128)):
        assert gpu_head_rows(vocabulary, gib << 30) == rows
    assert gpu_head_rows(110, 80 << 30) * 110 * 4 <= 80 << 22


def grouped(prompt_lengths: list[int], group: int, longest: int) -> list[Sequence]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, length).astype(np.int32) for length in prompt_lengths]
    lengths = rng.integers(1, longest + 1, (len(prompts), group))
    options = ScoreOptions(temperature=0.8, top_k=4, entropy=True, hidden_states=True, ranks=True)
    sequences = [
        Sequence(prompt, rng.integers(0, VOCAB, length).astype(np.int32), options)
        for prompt, row in zip(prompts, lengths, strict=True)
        for length in row
    ]
    return [sequences[index] for index in rng.permutation(len(sequences))]


@pytest.mark.parametrize(
    ("prompt_lengths", "group", "longest"),
    [([40, 40], 6, 12), ([30, 3, 17, 1], 5, 9), ([25], 4, 1)],
    ids=["equal prompts", "ragged prompts", "completions of one token"],
)
def test_scores_with_and_without_sharing_equal_a_plain_forward(model_and_backend, prompt_lengths, group, longest):
    model, backend = model_and_backend
    assert backend.info.shares_prompts
    sequences = grouped(prompt_lengths, group, longest)
    together = backend.score(sequences)
    steps = max(len(sequence.completion) for sequence in sequences) - 1
    if backend.info.layout is Layout.PACKED:
        assert together.computed_tokens == together.real_tokens
    else:
        assert together.computed_tokens == len(prompt_lengths) * max(prompt_lengths) + len(sequences) * steps
    assert together.real_tokens == sum(prompt_lengths) + sum(len(sequence.completion) - 1 for sequence in sequences)
    for sequence, score in zip(sequences, together.scores, strict=True):
        alone = backend.score([sequence])
        assert alone.computed_tokens == sequence.length
        ids = torch.from_numpy(np.concatenate([sequence.prompt, sequence.completion])).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(sequence.prompt) - 1 : -1] / sequence.options.temperature
        expected = logits.log_softmax(-1)
        logprobs = expected[torch.arange(len(sequence.completion)), ids[len(sequence.prompt) :]]
        above = (expected > logprobs[:, None] + 1e-5).sum(-1).numpy()
        close = (expected >= logprobs[:, None] - 1e-5).sum(-1).numpy()
        for found in (score, alone.scores[0]):
            assert ((above < found.ranks) & (found.ranks <= close)).all()
            np.testing.assert_allclose(found.logprobs, logprobs, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found.top_logprobs, expected.topk(4).values, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found.entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-5)
        np.testing.assert_allclose(score.hidden_states, alone.scores[0].hidden_states, rtol=0, atol=5e-5)


def test_prompts_of_one_completion_each_are_not_worth_sharing(model_and_backend):
    _, backend = model_and_backend
    sequences = grouped([30, 3, 17, 9], 1, 9)
    lengths = [sequence.length for sequence in sequences]
    packed = backend.info.layout is Layout.PACKED
    assert backend.score(sequences).computed_tokens == (sum(lengths) if packed else 4 * max(lengths))


def test_a_completion_longer_than_a_block_of_queries_sees_all_before_it_and_nothing_after(folder, monkeypatch):
    name, path = folder
    backend = TorchBackend(path, device="cpu", limits=DecoderLimits())
    monkeypatch.setattr(packed, "QUERY_BLOCK", 3)
    model = make_model(name)
    sequences = grouped([11, 2], 3, 14)
    for sequence, score in zip(sequences, backend.score(sequences).scores, strict=True):
        ids = torch.from_numpy(np.concatenate([sequence.prompt, sequence.completion])).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(sequence.prompt) - 1 : -1] / sequence.options.temperature
        expected = logits.log_softmax(-1)[torch.arange(len(sequence.completion)), ids[len(sequence.prompt) :]]
        np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=1e-5)


def test_what_a_sliding_window_cuts_off_is_not_packed(tmp_path):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=16, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    path = tmp_path
    Gemma3ForCausalLM(config).save_pretrained(path)
    backend = TorchBackend(path, device="cpu", limits=DecoderLimits())
    assert backend.info.layout is Layout.PACKED
    model = AutoModelForCausalLM.from_pretrained(path)
    short, long = grouped([3], 2, 4), grouped([21, 2], 3, 34)
    assert backend.score(short).computed_tokens == sum(len(one.completion) - 1 for one in short) + 3
    for sequence, score in zip(long, backend.score(long).scores, strict=True):
        ids = torch.from_numpy(np.concatenate([sequence.prompt, sequence.completion])).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(sequence.prompt) - 1 : -1] / sequence.options.temperature
        expected = logits.log_softmax(-1)[torch.arange(len(sequence.completion)), ids[len(sequence.prompt) :]]
        np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", [1, 5])
def test_a_batch_in_several_passes_has_the_scores_of_one(model_and_backend, monkeypatch, group):
    _, backend = model_and_backend
    sequences = grouped([30, 3, 17, 9], group, 9)
    monkeypatch.setattr(backend, "_pass_tokens", None)
    whole = backend.score(sequences)
    monkeypatch.setattr(backend, "_pass_tokens", 40)
    parts = backend.score(sequences)
    assert parts.real_tokens == whole.real_tokens
    if backend.info.layout is not Layout.PACKED:
        assert parts.computed_tokens < whole.computed_tokens  # like lengths are together
    for one, other in zip(whole.scores, parts.scores, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.hidden_states, other.hidden_states, rtol=0, atol=5e-5)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A folder, and its model in bfloat16."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, initializer_range=128**-0.5,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("narrow")
    config.save_pretrained(path)
    return path, AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def rounded(decoder, sequences, groups):
    """States as far from the exact ones as those of 36 layers of random weights at the width of real models are."""
    states = shared_prompt_states(decoder, sequences, groups)
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states.dtype)
    return states + 0.02 * states.std() * noise


def another_token(decoder, sequences, groups):
    changed = [replace(s, prompt=np.where(np.arange(len(s.prompt)) == 0, 77, s.prompt)) for s in sequences]
    return shared_prompt_states(decoder, changed, groups)


def one_token_more(decoder, sequences, groups):
    longer = [replace(s, prompt=np.concatenate([s.prompt[:1], s.prompt])) for s in sequences]
    return shared_prompt_states(decoder, longer, groups)


@pytest.mark.parametrize(
    ("states", "layout"),
    [(rounded, Layout.SHARED), (another_token, Layout.SEPARATE), (one_token_more, Layout.SEPARATE)],
)
def test_rounding_in_16_bits_is_no_reason_to_compute_prompts_again(narrow, monkeypatch, states, layout):
    path, model = narrow
    monkeypatch.setattr(torch_backend, "shared_prompt_states", states)
    backend = TorchBackend(path, device="cpu", attention="sdpa", limits=DecoderLimits(), model=model)
    assert backend.info.layout is layout
