"""Log-probabilities of tokens under the student. Shapes: B sequences, T positions, V vocabulary, H hidden
size, K ids of a support.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""The output projection: hidden states [N, H] to logits [N, V]."""


LOGIT_BYTES = 1 << 28
"""Of one chunk's logits in float32. A chunk's peak is about four times that, as softmax and entropy need copies."""

KEPT_BYTES = 1 << 24
"""Of a micro-batch's logits in float32. Where they take no more, keeping them is better than computing them again."""


def chunk_size(vocabulary: int) -> int:
    """Positions whose float32 logits take at most LOGIT_BYTES: 441 at a vocabulary of 152,064."""
    return max(1, LOGIT_BYTES // (4 * vocabulary))


class TokenScores(NamedTuple):
    """logprobs_N: of the ids. entropy_N: of their distributions, no gradient. support_NK: of further ids, or None. All
    float32, nats. top_ids_NK: int64, the most likely ids, most likely first, and top_logprobs_NK, theirs, without
    gradient; None where nobody asked.
    """

    logprobs_N: Tensor
    entropy_N: Tensor
    support_NK: Tensor | None = None
    top_ids_NK: Tensor | None = None
    top_logprobs_NK: Tensor | None = None


def token_logprobs(
    hidden_NH: Tensor,
    head: Head,
    ids_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 2048,
    recompute: bool = True,
    support_NK: Tensor | None = None,
    top_k: int = 0,
) -> TokenScores:
    """Log-probability of each id, and the entropy of its distribution, `chunk` positions at a time.

    hidden_NH: the states that predict the ids. head: the output projection, [H] -> [V]. ids_N: int64. support_NK:
    int64, further ids to look up at each position. top_k: how many of the most likely ids to name. All at
    `temperature`. recompute: keep no tensor [N, V], but compute each chunk's logits again in the backward pass.
    """
    parts = []
    for start in range(0, len(ids_N), chunk):
        part = slice(start, start + chunk)
        support = None if support_NK is None else support_NK[part]
        asked = (hidden_NH[part], head, ids_N[part], temperature, support, top_k)
        if recompute and torch.is_grad_enabled():
            # nothing random in it, and a rollout engine may draw beside it
            parts.append(checkpoint(_chunk, *asked, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_chunk(*asked))
    if not parts:
        empty = hidden_NH.new_zeros(0, dtype=torch.float32)
        further_NK = None if support_NK is None else hidden_NH.new_zeros(support_NK.shape, dtype=torch.float32)
        return TokenScores(empty, empty.clone(), further_NK)
    logprobs, entropies, *others = zip(*parts, strict=True)
    further_NK, ids_NK, top_NK = (None if column[0] is None else torch.cat(column) for column in others)
    return TokenScores(torch.cat(logprobs), torch.cat(entropies), further_NK, ids_NK, top_NK)


def _chunk(
    hidden_NH: Tensor, head: Head, ids_N: Tensor, temperature: float, support_NK: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    logits_NV = head(hidden_NH).float() / temperature
    log_z_N = logits_NV.logsumexp(-1)
    logprobs_N = logits_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1) - log_z_N
    further_NK = None if support_NK is None else logits_NV.gather(-1, support_NK) - log_z_N.unsqueeze(-1)
    with torch.no_grad():
        probabilities_NV = (logits_NV - log_z_N.unsqueeze(-1)).exp()
        entropy_N = log_z_N - (probabilities_NV * logits_NV).sum(-1)
        if not top_k:
            return logprobs_N, entropy_N, further_NK, None, None
        top_NK, ids_NK = logits_NV.topk(min(top_k, logits_NV.shape[-1]), -1)
    return logprobs_N, entropy_N, further_NK, ids_NK, top_NK - log_z_N.detach().unsqueeze(-1)
