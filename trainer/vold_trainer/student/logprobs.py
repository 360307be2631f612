"""Log-probabilities of tokens under the student. Shapes: B sequences, T positions, V vocabulary, H hidden
size, K token ids of a support or of the top k.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""The output projection: hidden states [N, H] to logits [N, V]."""


LOGIT_BYTES = 1 << 28
"""Of the float32 logits of one chunk, at least. Peak memory is about five times that (checking/memory.py)."""

LARGEST_LOGIT_BYTES = 1 << 30
DEVICE_SHARE = 128
"""A chunk's logits take 1 / DEVICE_SHARE of a GPU's memory, between LOGIT_BYTES and LARGEST_LOGIT_BYTES: with every
chunk the gradient of the head, which has the size of the head, is read and written once more.
"""

RECOMPUTE_BYTES = 1 << 24
"""Of the float32 logits of a micro-batch. Larger logits are recomputed in the backward pass rather than stored."""


def chunk_bytes(device: torch.device) -> int:
    """The float32 logits of one chunk on this device."""
    if device.type != "cuda":
        return LOGIT_BYTES
    share = torch.cuda.get_device_properties(device).total_memory // DEVICE_SHARE
    return max(LOGIT_BYTES, min(share, LARGEST_LOGIT_BYTES))


def chunk_size(vocabulary: int, logit_bytes: int) -> int:
    """Number of positions whose float32 logits take at most `logit_bytes`: with 256 MiB, 441 at a vocabulary of
    152,064.
    """
    return max(1, logit_bytes // (4 * vocabulary))


class TokenScores(NamedTuple):
    """logprobs_N: of the ids. entropy_N: of their distributions, with a gradient if asked for. support_logprobs_NK: of
    the ids of the support; None without a support. top_ids_NK, top_logprobs_NK: the most likely ids (int64), the most
    likely first, and their log-probabilities, without gradient; None if top_k is 0. All values are float32, in nats.
    """

    logprobs_N: Tensor
    entropy_N: Tensor
    support_logprobs_NK: Tensor | None = None
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
    support_ids_NK: Tensor | None = None,
    top_k: int = 0,
    entropy_gradient: bool = False,
) -> TokenScores:
    """Log-probability of each id and entropy of its distribution at `temperature`, computed in chunks of positions.

    hidden_NH: the states that predict the ids. head: the output projection, [H] -> [V]. ids_N: int64. support_ids_NK:
    int64, ids whose log-probabilities are returned too. top_k: number of most likely ids to return. entropy_gradient:
    whether the entropy has a gradient, which takes no more memory at the peak. chunk: positions per chunk. recompute:
    do not store the logits [N, V], but compute those of each chunk again in the backward pass.
    """
    parts = []
    for start in range(0, len(ids_N), chunk):
        part = slice(start, start + chunk)
        support = None if support_ids_NK is None else support_ids_NK[part]
        arguments = (hidden_NH[part], head, ids_N[part], temperature, support, top_k, entropy_gradient)
        if recompute and torch.is_grad_enabled():
            # A chunk uses no random numbers, and a rollout engine may use the generator at the same time.
            parts.append(checkpoint(_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_chunk(*arguments))
    if not parts:
        empty = hidden_NH.new_zeros(0, dtype=torch.float32)
        support_NK = None if support_ids_NK is None else hidden_NH.new_zeros(support_ids_NK.shape, dtype=torch.float32)
        return TokenScores(empty, empty.clone(), support_NK)
    logprobs, entropies, *others = zip(*parts, strict=True)
    support_NK, ids_NK, top_NK = (None if column[0] is None else torch.cat(column) for column in others)
    return TokenScores(torch.cat(logprobs), torch.cat(entropies), support_NK, ids_NK, top_NK)


def _chunk(
    hidden_NH: Tensor,
    head: Head,
    ids_N: Tensor,
    temperature: float,
    support_ids_NK: Tensor | None,
    top_k: int,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    logits_NV = head(hidden_NH).float() / temperature
    log_z_N = logits_NV.logsumexp(-1)
    logprobs_N = logits_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1) - log_z_N
    support_NK = None if support_ids_NK is None else logits_NV.gather(-1, support_ids_NK) - log_z_N.unsqueeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities_NV = (logits_NV - log_z_N.unsqueeze(-1)).exp()
        entropy_N = log_z_N - (probabilities_NV * logits_NV).sum(-1)
    if not top_k:
        return logprobs_N, entropy_N, support_NK, None, None
    with torch.no_grad():
        top_NK, ids_NK = logits_NV.topk(min(top_k, logits_NV.shape[-1]), -1)
    return logprobs_N, entropy_N, support_NK, ids_NK, top_NK - log_z_N.detach().unsqueeze(-1)
