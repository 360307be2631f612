"""Chunked log-probabilities against torch's own, values and gradients."""

from types import SimpleNamespace

import pytest
import torch
from vold_trainer.student.logprobs import LARGEST_LOGIT_BYTES, LOGIT_BYTES, chunk_bytes, chunk_size, token_logprobs


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("recompute", [True, False])
def test_equal_log_softmax_for_any_chunk(chunk, temperature, recompute):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=False).double()
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (7,))
    support = torch.randint(0, 11, (7, 3))
    found, entropy, support_logprobs, *_ = token_logprobs(
        hidden, head, ids, temperature=temperature, chunk=chunk, recompute=recompute, support_ids_NK=support
    )
    whole = (head(hidden).float() / temperature).log_softmax(-1)
    assert torch.allclose(found, whole.gather(-1, ids[:, None]).flatten(), atol=1e-6)
    assert torch.allclose(entropy, -(whole.exp() * whole).sum(-1), atol=1e-6)
    assert torch.allclose(support_logprobs, whole.gather(-1, support), atol=1e-6)
    weights = torch.randn(7)
    gradients = torch.autograd.grad((found * weights).sum() + support_logprobs.square().sum(), [hidden, head.weight])
    expected_loss = (whole.gather(-1, ids[:, None]).flatten() * weights).sum() + whole.gather(
        -1, support
    ).square().sum()
    expected_gradients = torch.autograd.grad(expected_loss, [hidden, head.weight])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("recompute", [True, False])
def test_the_entropy_has_the_gradient_of_torchs_own_where_asked_for(recompute):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=False)
    hidden = torch.randn(7, 8, requires_grad=True)
    ids = torch.randint(0, 11, (7,))
    options = {"temperature": 0.7, "chunk": 3, "recompute": recompute}
    assert not token_logprobs(hidden, head, ids, **options).entropy_N.requires_grad
    found = token_logprobs(hidden, head, ids, entropy_gradient=True, **options)
    weights = torch.randn(7)
    gradients = torch.autograd.grad((found.entropy_N * weights).sum() + found.logprobs_N.sum(), [hidden, head.weight])
    expected = torch.distributions.Categorical(logits=head(hidden) / 0.7)
    loss = (expected.entropy() * weights).sum() + expected.log_prob(ids).sum()
    for ours, theirs in zip(gradients, torch.autograd.grad(loss, [hidden, head.weight]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_nothing_in_nothing_out():
    nothing = torch.zeros(0, dtype=torch.long)
    found, entropy, support_logprobs, *_ = token_logprobs(torch.zeros(0, 8), torch.nn.Linear(8, 11), nothing)
    assert len(found) == len(entropy) == 0
    assert support_logprobs is None


def test_a_chunk_is_bounded_in_bytes_whatever_the_vocabulary():
    for vocabulary in (110, 32_000, 152_064, 262_208, 10**9):
        positions = chunk_size(vocabulary, LOGIT_BYTES)
        assert positions == 1 or 4 * vocabulary * positions <= LOGIT_BYTES
        assert 4 * vocabulary * (positions + 1) > LOGIT_BYTES
    assert chunk_size(152_064, LOGIT_BYTES) == 441


@pytest.mark.parametrize(("gigabytes", "expected"), [(8, LOGIT_BYTES), (80, 640 << 20), (1000, LARGEST_LOGIT_BYTES)])
def test_a_larger_device_has_larger_chunks_and_a_cpu_those_of_before(monkeypatch, gigabytes, expected):
    properties = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert chunk_bytes(torch.device("cuda", 0)) == expected
    assert chunk_bytes(torch.device("cpu")) == LOGIT_BYTES
