"""Log-probabilities of tokens under the student. Shapes: B sequences, T positions, V vocabulary, H hidden size."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""The output projection: hidden states [N, H] to logits [N, V]."""


def token_logprobs(
    hidden_NH: Tensor, head: Head, ids_N: Tensor, *, temperature: float = 1.0, chunk: int = 2048
) -> tuple[Tensor, Tensor]:
    """Log-probability of each id, and the entropy of its distribution, `chunk` positions at a time.

    hidden_NH: the states that predict the ids. head: the output projection, [H] -> [V]. ids_N: int64.
    Returns (logprobs_N, entropy_N), float32, nats, at `temperature`; entropy carries no gradient. No tensor
    [N, V] is kept: in the backward pass each chunk's logits are computed again.
    """
    logprobs, entropies = [], []
    for start in range(0, len(ids_N), chunk):
        part = slice(start, start + chunk)
        if torch.is_grad_enabled():
            result = checkpoint(_chunk, hidden_NH[part], head, ids_N[part], temperature, use_reentrant=False)
        else:
            result = _chunk(hidden_NH[part], head, ids_N[part], temperature)
        logprobs.append(result[0])
        entropies.append(result[1])
    if not logprobs:
        empty = hidden_NH.new_zeros(0, dtype=torch.float32)
        return empty, empty.clone()
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(hidden_NH: Tensor, head: Head, ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_NV = head(hidden_NH).float() / temperature
    log_z_N = logits_NV.logsumexp(-1)
    logprobs_N = logits_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1) - log_z_N
    with torch.no_grad():
        probabilities_NV = (logits_NV - log_z_N.unsqueeze(-1)).exp()
        entropy_N = log_z_N - (probabilities_NV * logits_NV).sum(-1)
    return logprobs_N, entropy_N
