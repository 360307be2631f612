"""Parts of the teacher on their own: chunked scoring, sampling, identity, whose turn it is to generate."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_fixtures import make_model, save_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.identity import weights_fingerprint
from vold_teacher.sampling import sample_tokens, stream_key, uniforms
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence


class _Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for item in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("parts") / "tiny")


def test_no_tensor_of_tokens_by_vocabulary_exists(tmp_path):
    vocab, tokens, rows = 5000, 600, 8
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        eos_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    backend = TorchBackend(tmp_path, limits=DecoderLimits(), max_logits=rows * vocab)
    options = ScoreOptions(top_k=10, entropy=True)
    rng = np.random.default_rng(0)
    sequences = [
        Sequence(
            rng.integers(0, vocab, 5).astype(np.int32),
            rng.integers(0, vocab, tokens // 4).astype(np.int32),
            options,
            rng.integers(0, vocab, tokens // 2).astype(np.int32),
            np.full(tokens // 4, 2, np.int32),
        )
        for _ in range(4)
    ]
    with _Largest() as largest:
        backend.score(sequences)
    assert vocab * rows <= largest.elements  # a chunk of logits was seen, so the recorder works
    # Attention may hold [rows, tokens, tokens] and the weights are [vocab, hidden]; all logits would be 3,000,000.
    assert largest.elements < tokens * vocab / 10


def keep_by_definition(logits: np.ndarray, temperature: float, top_p: float, top_k: int, min_p: float) -> np.ndarray:
    """The distribution of one row after temperature, min-p, top-k and top-p, computed the plain way."""
    probabilities = np.exp(logits / temperature - np.max(logits / temperature))
    order = np.argsort(-probabilities, kind="stable")[: top_k or len(logits)]
    order = order[probabilities[order] >= min_p * probabilities.max()]
    kept = np.zeros_like(probabilities)
    kept[order] = probabilities[order] / probabilities[order].sum()
    reached = 0.0
    for index in order:
        if reached >= top_p:
            kept[index] = 0
        reached += probabilities[index] / probabilities[order].sum()
    return kept / kept.sum()


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.1, 0.5, 0.87, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_sampling_inverts_the_distribution_that_its_options_define(logits, temperature, top_p, top_k, min_p):
    row = np.array(logits) / 10
    expected = keep_by_definition(row, temperature, top_p, top_k, min_p)
    samples = 400
    ids, logprobs = sample_tokens(
        torch.tensor(row, dtype=torch.float32).expand(samples, -1),
        (torch.arange(samples) + 0.5) / samples,
        torch.full((samples,), temperature),
        torch.full((samples,), top_p),
        torch.full((samples,), top_k),
        torch.full((samples,), min_p),
    )
    # Evenly spaced numbers hit every token as often as its probability says, to within one at either edge.
    np.testing.assert_allclose(np.bincount(ids, minlength=len(row)) / samples, expected, atol=2.5 / samples)
    plain = torch.tensor(row, dtype=torch.float32).log_softmax(-1)
    torch.testing.assert_close(logprobs, plain[ids])


def test_temperature_zero_takes_the_most_likely_and_mixes_with_other_rows():
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    ids, _ = sample_tokens(
        logits, torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 0])
    )
    assert ids.tolist() == [1, 0]


def test_random_streams_are_their_own_and_look_uniform():
    keys = np.array([stream_key(seed, prompt, index) for seed in range(4) for prompt in range(5) for index in range(5)])
    assert len(set(keys.tolist())) == 100
    keys = keys.astype(np.uint64)
    numbers = np.stack([uniforms(keys, np.full(100, step)) for step in range(200)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(uniforms(keys, np.full(100, 7)), numbers[7])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"rms_norm_eps": 1e-3}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, False),
        ({"transformers_version": "0.0.1", "_name_or_path": "elsewhere"}, True),
    ],
)
def test_the_fingerprint_covers_what_the_model_computes_with(folder, tmp_path, change, same):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed((config | change).items()))))
    assert (weights_fingerprint(copy) == weights_fingerprint(folder)) is same


def test_generation_of_a_higher_priority_begins_first_and_equals_take_turns(folder):
    decoder = TorchBackend(folder, limits=DecoderLimits(max_rows=1)).decoder()
    ids = np.array([7, 8, 9], np.int32)
    options = SamplingOptions(max_tokens=3, temperature=0)
    for request, priority in ((0, 0), (1, 0), (2, 1)):
        decoder.add(request, [GeneratePrompt(ids, index, 3) for index in range(2)], options, priority)
    order = []
    while decoder.busy:
        order += [request for request, chunk in decoder.advance(0.0) if chunk.finish_reason]
    assert order == [2, 2, 0, 1, 0, 1]


def test_a_cpu_computes_a_16_bit_checkpoint_in_float32_unless_told_otherwise(tmp_path):
    model = make_model("qwen3").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert TorchBackend(tmp_path, device="cpu", limits=DecoderLimits()).info.dtype == "float32"
    asked = TorchBackend(tmp_path, device="cpu", dtype="bfloat16", limits=DecoderLimits())
    assert asked.info.dtype == "bfloat16"
    assert asked.info.shares_prompts


def spoil(folder: Path, kind: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "garbage":
        weights.write_bytes(b"\x10" * 200)
    elif kind == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        change = {
            "lacking": {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            "misfit": {"intermediate_size": 32},
            "unknown": {"model_type": "nobodys"},
        }[kind]
        config.write_text(json.dumps(json.loads(config.read_text()) | change))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("garbage", "cannot read the weights"),
        ("cut short", "cannot read the weights"),
        ("lacking", "lack 11 tensors"),
        ("misfit", "config.json asks for [64, 32]"),
        ("unknown", "`nobodys`"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(folder, tmp_path, kind, text):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy, kind)
    with pytest.raises(OSError, match=re.escape(text)) as raised:
        TorchBackend(copy, limits=DecoderLimits())
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(OSError, match="there is no tokenizer"):
        Tokenizer(tmp_path)
