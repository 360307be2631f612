"""Prompts that completions share are computed once, and the scores are those of plain transformers forwards."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.types import ScoreOptions, Sequence

sys.path.insert(0, str(Path(__file__).parents[1] / "services"))
from teacher_fixtures import VOCAB, make_model, save_model


@pytest.fixture(scope="module", params=["qwen3", "llama", "gemma2"])
def model_and_backend(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_model(tmp_path_factory.mktemp("prefix"), request.param)
    return make_model(request.param), TorchBackend(folder, limits=DecoderLimits())


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
    assert backend.score(sequences).computed_tokens == 4 * max(sequence.length for sequence in sequences)


@pytest.mark.parametrize("group", [1, 5])
def test_a_batch_in_several_passes_has_the_scores_of_one(model_and_backend, monkeypatch, group):
    _, backend = model_and_backend
    sequences = grouped([30, 3, 17, 9], group, 9)
    monkeypatch.setattr(backend, "_pass_tokens", None)
    whole = backend.score(sequences)
    monkeypatch.setattr(backend, "_pass_tokens", 40)
    parts = backend.score(sequences)
    assert parts.real_tokens == whole.real_tokens
    assert parts.computed_tokens < whole.computed_tokens  # like lengths are together
    for one, other in zip(whole.scores, parts.scores, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.hidden_states, other.hidden_states, rtol=0, atol=5e-5)
